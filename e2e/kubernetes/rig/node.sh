#!/bin/bash
# The first process of one node's namespaces: its network, containerd, kubelet and kube-proxy. Started by the rig, which
# writes every file that is read here. Reads RIG_STATE, RIG_ADDRESS, RIG_NODE (a number) and RIG_CGROUPS, the files that
# take a process into the node's cgroups.
set -Eeuo pipefail
trap 'echo "line $LINENO failed: $BASH_COMMAND" >&2' ERR
S=$RIG_STATE
N=$RIG_NODE
NODE=$S/n$N
ADDRESS=10.198.0.1$N
PATH=$S/bin:$PATH

for procs in $RIG_CGROUPS; do echo 0 >"$procs"; done

mount --make-rprivate /
hostname "n$N"
until ip link show eth0 >/dev/null 2>&1; do sleep 0.02; done
ip link set lo up
ip addr add "$ADDRESS/24" dev eth0
ip link set eth0 up
ip route add default via "$RIG_ADDRESS"
for other in 1 2 3 4 5 6 7 8 9; do
  [ "$other" = "$N" ] || ip route add "10.197.$other.0/24" via "10.198.0.1$other"
done
sysctl -qw net.ipv4.ip_forward=1

# A /var/lib of its own, so that no folder is made on the machine; what has to last is in the node's folder.
mount -t tmpfs -o mode=755 tmpfs /var/lib
for folder in kubelet containerd cni volumes; do
  mkdir -p "$NODE/$folder" "/var/lib/$folder"
  mount --bind "$NODE/$folder" "/var/lib/$folder"
done
mkdir -p "$NODE/log/pods" "$NODE/log/containers"
mount --bind "$NODE/log" /var/log
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/netns /run/lock
mount --make-rshared /

containerd -c "$NODE/containerd.toml" >/var/log/containerd.log 2>&1 &
until [ -S /run/containerd/containerd.sock ] && ctr version >/dev/null 2>&1; do sleep 0.1; done
for image in "$S"/images/*.tar; do
  # A containerd that has just started on a busy machine may not be done in ctr's own time.
  for try in 1 2 3 4 5; do
    ctr --namespace k8s.io images import "$image" >>/var/log/import.log 2>&1 && break
    [ "$try" -lt 5 ] || { echo "ctr cannot import $image: $(tail -n 3 /var/log/import.log)" >&2; exit 1; }
    sleep 1
  done
done
kubelet --config="$NODE/kubelet.yaml" --kubeconfig="$S/pki/n$N.conf" --hostname-override="n$N" --node-ip="$ADDRESS" \
  --node-labels="topology.kubernetes.io/region=r1,topology.kubernetes.io/zone=z$N" >/var/log/kubelet.log 2>&1 &
kube-proxy --config="$NODE/proxy.yaml" >/var/log/kube-proxy.log 2>&1 &
exec pause
