"""`lswap top`: a dashboard in the terminal.

`history` stores the answers of a server, `picture` makes rows of them, and `drawing` makes styled
texts of the rows. These three are pure. `widgets` and `app` show the texts; `top.tcss` has the
layout.
"""
