#!/bin/bash
# The first process of the rig's own network, mount and pid namespaces: the bridge that joins the nodes, and the control
# plane. Started by `Rig::up`, which writes every file that is read here. Reads RIG_STATE and RIG_ADDRESS.
set -euo pipefail
S=$RIG_STATE
PKI=$S/pki
LOG=$S/log
PATH=$S/bin:$PATH

mount --make-rprivate /
hostname rig0
mount --bind "$S/resolv.conf" /etc/resolv.conf

ip link set lo up
ip link add fabric type bridge
ip addr add "$RIG_ADDRESS/24" dev fabric
ip link set fabric up
# Services have no interface of their own. Any route will do: kube-proxy rewrites the address on the way out.
ip route add 10.96.0.0/16 dev fabric
sysctl -qw net.ipv4.ip_forward=1

mount -t tmpfs -o mode=700 tmpfs "$S/etcd"
etcd --data-dir "$S/etcd" --unsafe-no-fsync --quota-backend-bytes 2147483648 \
  --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
  --listen-peer-urls http://127.0.0.1:2380 >"$LOG/etcd.log" 2>&1 &

kube-apiserver --etcd-servers=http://127.0.0.1:2379 \
  --advertise-address="$RIG_ADDRESS" --bind-address=0.0.0.0 --secure-port=6443 \
  --tls-cert-file="$PKI/apiserver.crt" --tls-private-key-file="$PKI/apiserver.key" --client-ca-file="$PKI/ca.crt" \
  --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged=true \
  --service-cluster-ip-range=10.96.0.0/16 \
  --service-account-issuer=https://kubernetes.default.svc.cluster.local \
  --service-account-key-file="$PKI/sa.pub" --service-account-signing-key-file="$PKI/sa.key" \
  --kubelet-client-certificate="$PKI/apiserver.crt" --kubelet-client-key="$PKI/apiserver.key" \
  --kubelet-certificate-authority="$PKI/ca.crt" --kubelet-preferred-address-types=InternalIP,Hostname \
  --requestheader-client-ca-file="$PKI/ca.crt" --requestheader-allowed-names=front-proxy \
  --requestheader-username-headers=X-Remote-User --requestheader-group-headers=X-Remote-Group \
  --requestheader-extra-headers-prefix=X-Remote-Extra- \
  --proxy-client-cert-file="$PKI/front-proxy.crt" --proxy-client-key-file="$PKI/front-proxy.key" \
  --enable-aggregator-routing=true \
  --default-not-ready-toleration-seconds=15 --default-unreachable-toleration-seconds=15 \
  --audit-policy-file="$S/audit.yaml" --audit-log-path="$LOG/audit.log" >"$LOG/kube-apiserver.log" 2>&1 &

# Before the API server's start-up hooks have made the built-in roles, the others are forbidden everything and exit.
for ((tries = 0; ; tries++)); do
  kubectl --kubeconfig="$PKI/admin.conf" get --raw /readyz >/dev/null 2>&1 && break
  ((tries < 600)) || { echo "the API server is not ready; see $LOG/kube-apiserver.log" >&2; exit 1; }
  sleep 0.2
done

kube-controller-manager --kubeconfig="$PKI/controller-manager.conf" \
  --authentication-kubeconfig="$PKI/controller-manager.conf" --authorization-kubeconfig="$PKI/controller-manager.conf" \
  --use-service-account-credentials --service-account-private-key-file="$PKI/sa.key" --root-ca-file="$PKI/ca.crt" \
  --cluster-signing-cert-file="$PKI/ca.crt" --cluster-signing-key-file="$PKI/ca.key" \
  --service-cluster-ip-range=10.96.0.0/16 --leader-elect=false --bind-address=127.0.0.1 \
  --kube-api-qps=200 --kube-api-burst=400 --pvclaimbinder-sync-period=2s \
  --node-monitor-period=1s --node-monitor-grace-period=10s \
  --flex-volume-plugin-dir="$S/flexvolumes" >"$LOG/kube-controller-manager.log" 2>&1 &
kube-scheduler --kubeconfig="$PKI/scheduler.conf" \
  --authentication-kubeconfig="$PKI/scheduler.conf" --authorization-kubeconfig="$PKI/scheduler.conf" \
  --leader-elect=false --bind-address=127.0.0.1 >"$LOG/kube-scheduler.log" 2>&1 &
# For the test programs in this network and the API server's own webhook calls, whichever nodes live.
kube-proxy --config="$S/proxy.yaml" >"$LOG/kube-proxy.log" 2>&1 &
coredns -conf "$S/Corefile" >"$LOG/coredns.log" 2>&1 &
provisioner --kubeconfig="$PKI/admin.conf" --state="$S" >"$LOG/provisioner.log" 2>&1 &
exec pause
