"""What runs inside the sandbox, and what builds it: standard library only, started from this folder by path.

Nothing here may import the rest of bitworth, which is not mounted there.
"""
