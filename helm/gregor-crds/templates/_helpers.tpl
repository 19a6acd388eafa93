{{/*
Whether this release writes the definition .name: it is not there, or it is this release's, or nobody's (kubectl's), or
taking it over is wanted. Helm refuses to write what belongs to another release.
*/}}
{{- define "gregor-crds.writes" -}}
{{- $there := lookup "apiextensions.k8s.io/v1" "CustomResourceDefinition" "" .name -}}
{{- $annotations := dig "metadata" "annotations" (dict) $there -}}
{{- $name := get $annotations "meta.helm.sh/release-name" -}}
{{- $namespace := get $annotations "meta.helm.sh/release-namespace" -}}
{{- if or (not $there) .root.Values.adopt (and (eq $name .root.Release.Name) (eq $namespace .root.Release.Namespace)) -}}
true
{{- end -}}
{{- end -}}
