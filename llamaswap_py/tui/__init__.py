"""`lswap top`: a dashboard in the terminal.

`history` keeps what a server said, `picture` makes rows of it, `screen` and `drawing` make lines of
those: pure, all of them. `link` asks the server, `app` puts the lines on the screen (textual).
"""
