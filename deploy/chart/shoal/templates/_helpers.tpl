{{- define "shoal.name" -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "shoal.labels" -}}
{{ include "shoal.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{/* Of all pods that are nodes of the mesh. */}}
{{- define "shoal.selector" -}}
app.kubernetes.io/name: shoal
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "shoal.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{/* The configuration file: what the chart sets, and the values' settings. */}}
{{- define "shoal.settings" -}}
{{- $own := dict
    "ssh" (printf "[::]:%v" .Values.service.ssh)
    "http" (printf "[::]:%v" .Values.service.http)
    "mesh" "[::]:7433"
    "mesh-secret-file" (printf "/run/secrets/shoal/mesh/%s" .Values.mesh.key)
    "authorized-keys" "/etc/shoal/authorized_keys"
    "peer-dns" (list (printf "%s-mesh.%s.svc" (include "shoal.name" .) .Release.Namespace))
    "drain-timeout" (printf "%vs" (sub .Values.drainSeconds 20)) -}}
{{- merge $own (deepCopy .Values.settings) | toToml -}}
{{- end -}}

{{/* Volumes of every node, and where they show. */}}
{{- define "shoal.volumes" -}}
- name: config
  configMap:
    name: {{ include "shoal.name" . }}
- name: mesh
  secret:
    secretName: {{ .Values.mesh.existingSecret }}
    defaultMode: 0440
{{- if .Values.signing.existingSecret }}
- name: signing
  secret:
    secretName: {{ .Values.signing.existingSecret }}
    defaultMode: 0440
{{- end }}
- name: tmp
  emptyDir: {}
- name: run
  emptyDir:
    medium: Memory
{{- end -}}

{{- define "shoal.mounts" -}}
- { name: config, mountPath: /etc/shoal, readOnly: true }
- { name: mesh, mountPath: /run/secrets/shoal/mesh, readOnly: true }
{{- if .Values.signing.existingSecret }}
- { name: signing, mountPath: /run/secrets/shoal/signing, readOnly: true }
{{- end }}
- { name: tmp, mountPath: /tmp }
- { name: run, mountPath: /run/shoal }
{{- end -}}

{{- define "shoal.ports" -}}
- { name: ssh, containerPort: {{ .Values.service.ssh }} }
- { name: http, containerPort: {{ .Values.service.http }} }
- { name: mesh, containerPort: 7433, protocol: UDP }
{{- end -}}

{{/* A start on a large store may take a while; a node that serves says so itself. */}}
{{- define "shoal.probes" -}}
startupProbe:
  httpGet: { path: /healthz, port: http }
  periodSeconds: 1
  failureThreshold: 300
readinessProbe:
  httpGet: { path: /readyz, port: http }
  periodSeconds: 5
livenessProbe:
  httpGet: { path: /healthz, port: http }
  periodSeconds: 20
  timeoutSeconds: 10
  failureThreshold: 6
{{- end -}}

{{/* Another configuration is another pod. */}}
{{- define "shoal.checksum" -}}
{{ printf "%s%s" (include "shoal.settings" .) (join "\n" .Values.authorizedKeys) | sha256sum }}
{{- end -}}
