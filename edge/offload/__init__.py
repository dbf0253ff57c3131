"""Who answers, and what happens when one fails: the router, its backends, and the workers that may be asked."""
