{{- define "gregor-operator.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{/* The release's full name: two releases never share an object. */}}
{{- define "gregor-operator.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else -}}
{{- $name := include "gregor-operator.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The name of what belongs to no namespace: releases of one name in two namespaces do not share it either. */}}
{{- define "gregor-operator.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "gregor-operator.fullname" .) -}}
{{- end -}}

{{- define "gregor-operator.selector" -}}
app.kubernetes.io/name: {{ include "gregor-operator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "gregor-operator.labels" -}}
{{ include "gregor-operator.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "gregor-operator.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "gregor-operator.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "gregor-operator.tag" -}}
{{- default .Chart.AppVersion .Values.image.tag -}}
{{- end -}}

{{- define "gregor-operator.image" -}}
{{- with .Values.image.registry -}}{{ . }}/{{- end -}}
{{- .Values.image.repository -}}:{{- include "gregor-operator.tag" . -}}
{{- end -}}

{{/* The nodes' image without its tag. */}}
{{- define "gregor-operator.brokerImage" -}}
{{- with default .Values.image.registry .Values.broker.image.registry -}}{{ . }}/{{- end -}}
{{- .Values.broker.image.repository -}}
{{- end -}}

{{/* What the operator may do where clusters and topics live. */}}
{{- define "gregor-operator.rules" -}}
- apiGroups: [gregor.dev]
  resources: [kafkaclusters, kafkatopics]
  verbs: [get, list, watch]
# A topic's finalizer and the note of its own configuration keys; never a spec.
- apiGroups: [gregor.dev]
  resources: [kafkatopics]
  verbs: [patch]
- apiGroups: [gregor.dev]
  resources: [kafkaclusters/status, kafkatopics/status]
  verbs: [patch]
# Owner references that block a deletion need this where OwnerReferencesPermissionEnforcement is on.
- apiGroups: [gregor.dev]
  resources: [kafkaclusters/finalizers]
  verbs: [update]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, list, watch, create, patch, update, delete]
# The certificates of clusters' nodes, with their keys, each by its name: it neither lists nor watches Secrets. Nor does it delete
# them: they go with their cluster.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, create, update]
- apiGroups: [""]
  resources: [services]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [serviceaccounts]
  verbs: [get, list, watch, create, patch]
# It never deletes a claim.
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, list, watch, create, patch]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, delete{{ if .Values.rbac.nodes }}, patch{{ end }}]
- apiGroups: [apps]
  resources: [statefulsets]
  verbs: [get, list, watch, create, patch]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end -}}
