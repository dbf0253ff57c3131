"""Who answers in the cloud: workers and upstreams, which of them to ask, and what happens when one fails."""
