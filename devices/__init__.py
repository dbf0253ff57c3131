"""What devices and links can do: profiles, the cores that a process has, and a link made to happen."""
