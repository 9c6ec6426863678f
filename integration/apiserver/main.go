// The real kube-apiserver, at the version that go.mod pins. Kubernetes' own modules, which its repository has beside it, are replaced
// there by those of the same release: v1.N.P goes with v0.N.P. For another one change both, and run go mod tidy.
package main

import (
	"os"

	"k8s.io/component-base/cli"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func main() {
	os.Exit(cli.Run(app.NewAPIServerCommand()))
}
