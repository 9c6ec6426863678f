// A client of the container runtime that keeps its connection open. A request costs the node a few
// milliseconds, while crictl takes a third of a second to start. The tests use this client for
// steps that they repeat often. They use crictl for the results that they check.
//
// The client listens on 127.0.0.1 at the port in its first argument. Each connection sends one line
// with a request. The answer begins with a line that holds the status, 0 or 1. The output of the
// request or the error follows. Messages for the runtime are JSON files as crictl reads them.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// The file in which crictl finds the runtime's endpoint.
	configuration = "/etc/crictl.yaml"
	endpoint      = "runtime-endpoint: "
	// Time limit of a request, long enough to wait for a runtime that restarts.
	patience = 200 * time.Second
	// Number of pods that stop at the same time. containerd gives the end of a pod ten seconds. Six
	// pods that ended together on a slow node took longer, and the next attempt took as long again.
	atOnce = 2
)

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

func run() error {
	if len(os.Args) != 2 {
		return errors.New("expected the port to listen on")
	}
	runtime, err := connect()
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:"+os.Args[1])
	if err != nil {
		return err
	}
	if err := ready(); err != nil {
		return err
	}
	for {
		client, err := listener.Accept()
		if err != nil {
			return err
		}
		go serve(client, runtime)
	}
}

// Returns a client of the runtime. gRPC connects at the first request and again whenever the
// runtime comes back.
func connect() (cri.RuntimeServiceClient, error) {
	text, err := os.ReadFile(configuration)
	if err != nil {
		return nil, err
	}
	for _, line := range strings.Split(string(text), "\n") {
		if target, found := strings.CutPrefix(line, endpoint); found {
			soon := backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1, MaxDelay: 50 * time.Millisecond}
			connection, err := grpc.NewClient(target,
				grpc.WithTransportCredentials(insecure.NewCredentials()),
				grpc.WithConnectParams(grpc.ConnectParams{Backoff: soon, MinConnectTimeout: time.Second}),
				grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
			if err != nil {
				return nil, err
			}
			return cri.NewRuntimeServiceClient(connection), nil
		}
	}
	return nil, fmt.Errorf("%s: no %q", configuration, endpoint)
}

// Notifies systemd that this service is ready.
func ready() error {
	socket, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		return err
	}
	defer socket.Close()
	_, err = socket.Write([]byte("READY=1"))
	return err
}

func serve(client net.Conn, runtime cri.RuntimeServiceClient) {
	defer client.Close()
	line, err := bufio.NewReader(client).ReadString('\n')
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	said, err := answer(ctx, runtime, strings.Fields(line))
	if err != nil {
		fmt.Fprintf(client, "1\n%s: %v\n", strings.TrimSpace(line), err)
		return
	}
	fmt.Fprint(client, "0\n")
	for _, line := range said {
		fmt.Fprintln(client, line)
	}
}

// Executes a request and returns the lines of its output.
func answer(ctx context.Context, runtime cri.RuntimeServiceClient, words []string) ([]string, error) {
	if len(words) == 0 {
		return nil, errors.New("expected a request")
	}
	request, words := words[0], words[1:]
	is := func(name string, least, most int) bool {
		return request == name && len(words) >= least && (len(words) <= most || most < least)
	}
	const more = -1
	switch {
	// version: waits until the runtime answers.
	case is("version", 0, 0):
		_, err := runtime.Version(ctx, &cri.VersionRequest{})
		return nil, err
	// run HANDLER SANDBOX CONTAINER…: runs a pod. Prints the ids on one line, the sandbox's first.
	case is("run", 2, more):
		ids, err := runPod(ctx, runtime, words[0], words[1], words[2:])
		return []string{strings.Join(ids, " ")}, err
	// start POD SANDBOX CONTAINER: creates and starts a container. Prints the container's id.
	case is("start", 3, 3):
		id, err := start(ctx, runtime, words[0], words[1], words[2])
		return []string{id}, err
	// update CONTAINER BYTES: sets the memory limit of a container.
	case is("update", 2, 2):
		limit, err := strconv.ParseInt(words[1], 10, 64)
		if err != nil {
			return nil, err
		}
		resources := &cri.LinuxContainerResources{MemoryLimitInBytes: limit}
		_, err = runtime.UpdateContainerResources(ctx, &cri.UpdateContainerResourcesRequest{ContainerId: words[0], Linux: resources})
		return nil, err
	// remove POD…: stops and removes pods.
	case is("remove", 1, more):
		return nil, remove(ctx, runtime, words)
	// clear: stops and removes all pods.
	case is("clear", 0, 0):
		pods, err := runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
		if err != nil {
			return nil, err
		}
		var ids []string
		for _, pod := range pods.Items {
			ids = append(ids, pod.Id)
		}
		return nil, remove(ctx, runtime, ids)
	}
	return nil, errors.New("no request that is known")
}

func read(path string, message any) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, message); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func runPod(ctx context.Context, runtime cri.RuntimeServiceClient, handler, sandbox string, containers []string) ([]string, error) {
	var config cri.PodSandboxConfig
	if err := read(sandbox, &config); err != nil {
		return nil, err
	}
	pod, err := runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: &config, RuntimeHandler: handler})
	if err != nil {
		return nil, err
	}
	ids := []string{pod.PodSandboxId}
	for _, container := range containers {
		id, err := start(ctx, runtime, pod.PodSandboxId, sandbox, container)
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, nil
}

func start(ctx context.Context, runtime cri.RuntimeServiceClient, pod, sandbox, container string) (string, error) {
	var config cri.ContainerConfig
	var sandboxConfig cri.PodSandboxConfig
	if err := errors.Join(read(container, &config), read(sandbox, &sandboxConfig)); err != nil {
		return "", err
	}
	request := &cri.CreateContainerRequest{PodSandboxId: pod, Config: &config, SandboxConfig: &sandboxConfig}
	created, err := runtime.CreateContainer(ctx, request)
	if err != nil {
		return "", err
	}
	_, err = runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: created.ContainerId})
	return created.ContainerId, err
}

func remove(ctx context.Context, runtime cri.RuntimeServiceClient, pods []string) error {
	results := make(chan error)
	turns := make(chan struct{}, atOnce)
	for _, pod := range pods {
		go func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			_, err := runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: pod})
			if err == nil {
				_, err = runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: pod})
			}
			results <- err
		}()
	}
	var all error
	for range pods {
		all = errors.Join(all, <-results)
	}
	return all
}
