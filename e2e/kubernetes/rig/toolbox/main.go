// Program toolbox is what the rig's own images run: pause, the first process of a pod and of the rig's namespaces, and
// a small HTTP server and client with which the rig's tests see that pods, volumes, names and services work.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

func main() {
	name, args := filepath.Base(os.Args[0]), os.Args[1:]
	if name == "toolbox" && len(args) > 0 {
		name, args = args[0], args[1:]
	}
	switch {
	case name == "pause":
		pause()
	case name == "serve" && len(args) == 2:
		exit(serve(args[0], args[1]))
	case name == "get" && len(args) == 1:
		exit(request(http.MethodGet, args[0], nil))
	case name == "put" && len(args) == 2:
		exit(request(http.MethodPut, args[0], strings.NewReader(args[1])))
	default:
		fmt.Fprintln(os.Stderr, "usage: toolbox pause | serve FOLDER ADDRESS | get URL | put URL TEXT")
		os.Exit(2)
	}
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "toolbox:", err)
		os.Exit(1)
	}
}

// pause waits to be told to stop, and takes the exit codes of orphans: it is the pid 1 of its namespace.
func pause() {
	children := make(chan os.Signal, 16)
	signal.Notify(children, syscall.SIGCHLD)
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	for {
		select {
		case <-stop:
			return
		case <-children:
			for {
				if pid, _ := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 {
					break
				}
			}
		}
	}
}

// serve answers GET /name with the file of that name in the folder, PUT /name by writing it, and GET / with the host's name.
func serve(folder, address string) error {
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	handler := func(w http.ResponseWriter, r *http.Request) {
		file := filepath.Join(folder, filepath.Base(r.URL.Path))
		switch {
		case r.URL.Path == "/":
			fmt.Fprintln(w, host)
		case r.Method == http.MethodPut:
			body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
			if err == nil {
				err = os.WriteFile(file, body, 0o644)
			}
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
			}
		default:
			http.ServeFile(w, r, file)
		}
	}
	server := &http.Server{Addr: address, Handler: http.HandlerFunc(handler)}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	go func() {
		<-ctx.Done()
		server.Close()
	}()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func request(method, url string, body io.Reader) error {
	req, err := http.NewRequest(method, url, body)
	if err != nil {
		return err
	}
	client := http.Client{Timeout: 5 * time.Second}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if _, err := io.Copy(os.Stdout, res.Body); err != nil {
		return err
	}
	if res.StatusCode >= 300 {
		return errors.New(res.Status)
	}
	return nil
}
