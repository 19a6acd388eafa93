//! A real Kubernetes anywhere: a given cluster, kind, k3d, minikube, or a rig of namespaces.
