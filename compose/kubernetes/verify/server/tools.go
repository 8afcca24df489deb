//go:build tools

// Package tools names the programs whose versions go.mod pins: a kube-apiserver to try the manifests on, and kubectl.
package tools

import (
	_ "k8s.io/kubernetes/cmd/kube-apiserver"
	_ "k8s.io/kubernetes/cmd/kubectl"
)
