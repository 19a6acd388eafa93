//! Tests of the operator and of clusters on a real Kubernetes.
