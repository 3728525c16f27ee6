"""`lswap top`: a dashboard in the terminal.

`history` keeps what a server said, `picture` makes rows of it, `drawing` makes styled texts of the
rows: pure, all of them. `widgets` and `app` put the texts on the screen, `top.tcss` says where.
"""
