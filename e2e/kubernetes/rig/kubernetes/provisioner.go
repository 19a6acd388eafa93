package main

import (
	"context"
	"errors"
	"flag"
	"log"
	"os"
	"path/filepath"
	"time"

	core "k8s.io/api/core/v1"
	storage "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	storagelisters "k8s.io/client-go/listers/storage/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	driver        = "rig.gregor.dev/local"
	nodeLabel     = "rig.gregor.dev/node"
	provisionedBy = "pv.kubernetes.io/provisioned-by"
	selectedNode  = "volume.kubernetes.io/selected-node"
	// Where a node sees its folder of volumes; on the machine it is <state>/<node>/volumes.
	volumesOnNode = "/var/lib/volumes"
)

// volumes makes a folder on the node that the scheduler chose for a claim, and removes it when the claim is gone.
type volumes struct {
	client  kubernetes.Interface
	state   string
	claims  corelisters.PersistentVolumeClaimLister
	volumes corelisters.PersistentVolumeLister
	classes storagelisters.StorageClassLister
}

// provisioner runs until it is killed: provisioner --kubeconfig FILE --state FOLDER.
func provisioner(args []string) {
	flags := flag.NewFlagSet("provisioner", flag.ExitOnError)
	kubeconfig := flags.String("kubeconfig", "", "how to reach the API server")
	state := flags.String("state", "", "the rig's folder: a volume of node n1 is a folder in <state>/n1/volumes")
	if err := flags.Parse(args); err != nil {
		log.Fatal(err)
	}
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		log.Fatal(err)
	}
	client := kubernetes.NewForConfigOrDie(config)
	factory := informers.NewSharedInformerFactory(client, 0)
	claims := factory.Core().V1().PersistentVolumeClaims()
	vols := factory.Core().V1().PersistentVolumes()
	classes := factory.Storage().V1().StorageClasses()

	// Any change leads to a look at everything: there are a few dozen volumes at most.
	changed := make(chan struct{}, 1)
	notify := func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	handler := cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { notify() },
		UpdateFunc: func(any, any) { notify() },
		DeleteFunc: func(any) { notify() },
	}
	for _, informer := range []cache.SharedIndexInformer{claims.Informer(), vols.Informer(), classes.Informer()} {
		if _, err := informer.AddEventHandler(handler); err != nil {
			log.Fatal(err)
		}
	}
	ctx := context.Background()
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())

	v := volumes{client: client, state: *state, claims: claims.Lister(), volumes: vols.Lister(), classes: classes.Lister()}
	for range changed {
		if err := v.reconcile(ctx); err != nil {
			log.Print(err)
			time.AfterFunc(time.Second, notify)
		}
	}
}

func (v volumes) reconcile(ctx context.Context) error {
	var failures []error
	claims, err := v.claims.List(labels.Everything())
	failures = append(failures, err)
	for _, claim := range claims {
		failures = append(failures, v.provision(ctx, claim))
	}
	all, err := v.volumes.List(labels.Everything())
	failures = append(failures, err)
	for _, volume := range all {
		failures = append(failures, v.remove(ctx, volume))
	}
	return errors.Join(failures...)
}

func (v volumes) provision(ctx context.Context, claim *core.PersistentVolumeClaim) error {
	node := claim.Annotations[selectedNode]
	if claim.Status.Phase != core.ClaimPending || claim.Spec.VolumeName != "" || node == "" || claim.Spec.StorageClassName == nil {
		return nil
	}
	class, err := v.classes.Get(*claim.Spec.StorageClassName)
	if err != nil || class.Provisioner != driver {
		return nil
	}
	name := "pvc-" + string(claim.UID)
	// Owned by root, as a new disk is: the pod's fsGroup says who may write.
	if err := os.MkdirAll(filepath.Join(v.state, node, "volumes", name), 0o755); err != nil {
		return err
	}
	_, err = v.client.CoreV1().PersistentVolumes().Create(ctx, localVolume(name, node, class, claim), meta.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

func localVolume(name, node string, class *storage.StorageClass, claim *core.PersistentVolumeClaim) *core.PersistentVolume {
	mode := core.PersistentVolumeFilesystem
	onNode := core.NodeSelectorRequirement{Key: core.LabelHostname, Operator: core.NodeSelectorOpIn, Values: []string{node}}
	return &core.PersistentVolume{
		ObjectMeta: meta.ObjectMeta{
			Name:        name,
			Labels:      map[string]string{nodeLabel: node},
			Annotations: map[string]string{provisionedBy: driver},
		},
		Spec: core.PersistentVolumeSpec{
			Capacity:                      core.ResourceList{core.ResourceStorage: claim.Spec.Resources.Requests[core.ResourceStorage]},
			AccessModes:                   claim.Spec.AccessModes,
			PersistentVolumeReclaimPolicy: *class.ReclaimPolicy,
			StorageClassName:              class.Name,
			VolumeMode:                    &mode,
			ClaimRef: &core.ObjectReference{
				Kind: "PersistentVolumeClaim", APIVersion: "v1", Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID,
			},
			PersistentVolumeSource: core.PersistentVolumeSource{Local: &core.LocalVolumeSource{Path: filepath.Join(volumesOnNode, name)}},
			NodeAffinity: &core.VolumeNodeAffinity{Required: &core.NodeSelector{NodeSelectorTerms: []core.NodeSelectorTerm{
				{MatchExpressions: []core.NodeSelectorRequirement{onNode}},
			}}},
		},
	}
}

func (v volumes) remove(ctx context.Context, volume *core.PersistentVolume) error {
	unused := volume.Status.Phase == core.VolumeReleased && volume.Spec.PersistentVolumeReclaimPolicy == core.PersistentVolumeReclaimDelete
	if !unused || volume.Annotations[provisionedBy] != driver {
		return nil
	}
	if err := os.RemoveAll(filepath.Join(v.state, volume.Labels[nodeLabel], "volumes", volume.Name)); err != nil {
		return err
	}
	err := v.client.CoreV1().PersistentVolumes().Delete(ctx, volume.Name, meta.DeleteOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
