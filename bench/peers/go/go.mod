module bench/goproxy

go 1.19
