// The yardstick: Go's httputil.ReverseProxy with a model lookup, and nothing else.
//
//	goproxy LISTEN NETWORK ADDRESS       e.g. 127.0.0.1:8080 unix /run/stub.sock
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"time"
)

type backend struct{ proxy *httputil.ReverseProxy }

func newBackend(network, address string) *backend {
	dialer := net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, network, address)
		},
		MaxIdleConns:        100,
		MaxIdleConnsPerHost: 32,
		IdleConnTimeout:     4 * time.Second,
		DisableCompression:  true,
	}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: "localhost"})
	proxy.Transport = transport
	proxy.FlushInterval = -1
	return &backend{proxy}
}

func main() {
	backends := map[string]*backend{"stub": newBackend(os.Args[2], os.Args[3])}
	handler := func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		var ask struct {
			Model string `json:"model"`
		}
		if err != nil || json.Unmarshal(body, &ask) != nil {
			http.Error(w, "bad request", http.StatusBadRequest)
			return
		}
		found, ok := backends[ask.Model]
		if !ok {
			http.Error(w, "model not found", http.StatusNotFound)
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		r.ContentLength = int64(len(body))
		r.TransferEncoding = nil
		found.proxy.ServeHTTP(w, r)
	}
	listener, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		panic(err)
	}
	panic(http.Serve(listener, http.HandlerFunc(handler)))
}
