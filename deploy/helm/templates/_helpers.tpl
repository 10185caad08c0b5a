{{/* The first part of the name of every object. */}}
{{- define "tritonctl.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Labels that select the pods of a component. Argument: a list of the root context and the component. */}}
{{- define "tritonctl.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ $root.Chart.Name }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* Labels of an object. Argument: as for the selector. */}}
{{- define "tritonctl.labels" -}}
{{- $root := index . 0 -}}
{{ include "tritonctl.selector" . }}
app.kubernetes.io/part-of: tritonctl
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* The image of a container and its pull policy. Argument: a list of the root context and the component's `image`. */}}
{{- define "tritonctl.image" -}}
{{- $root := index . 0 -}}
{{- $image := mergeOverwrite (deepCopy $root.Values.image) (index . 1) -}}
{{- if $image.digest -}}
image: {{ printf "%s@%s" $image.repository $image.digest | quote }}
{{- else -}}
image: {{ printf "%s:%s" $image.repository ($image.tag | default $root.Chart.AppVersion) | quote }}
{{- end }}
imagePullPolicy: {{ $image.pullPolicy }}
{{- end -}}

{{/* The name of a component's service account. Argument: a list of the root context, the component, its values. */}}
{{- define "tritonctl.serviceAccountName" -}}
{{- $account := (index . 2).serviceAccount -}}
{{- if $account.create -}}
{{- $account.name | default (printf "%s-%s" (include "tritonctl.fullname" (index . 0)) (index . 1)) -}}
{{- else -}}
{{- $account.name | default "default" -}}
{{- end -}}
{{- end -}}

{{/* The security context of every container. */}}
{{- define "tritonctl.containerSecurity" -}}
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
readOnlyRootFilesystem: true
{{- end -}}

{{/* The security context of a pod whose containers run as the image's user 10001. */}}
{{- define "tritonctl.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{/* Where pods of a component run. Argument: a list of the component's values, and the labels that select its pods. */}}
{{- define "tritonctl.scheduling" -}}
{{- $values := index . 0 -}}
{{- with $values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $values.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
topologySpreadConstraints:
{{- range $key := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- index $ 1 | nindent 8 }}
{{- end }}
{{- end -}}

{{/* The Triton server as a setting. Argument: a list of the root context, the server's host, and what else is to be set. */}}
{{- define "tritonctl.servers" -}}
{{- $host := index . 1 -}}
{{- $server := dict "name" "triton" "control_key" "$(TRITON_CONTROL_KEY)" "labels" (index . 0).Values.triton.labels -}}
{{- $_ := set $server "grpc_url" (printf "%s:8001" $host) -}}
{{- $_ := set $server "http_url" (printf "http://%s:8000" $host) -}}
{{- $_ := set $server "metrics_url" (printf "http://%s:8002/metrics" $host) -}}
{{- list (merge $server (index . 2)) | toJson -}}
{{- end -}}

{{/* The environment of every process of the control plane. Argument: a list of the root context and the Secret with its
     S3 credentials. */}}
{{- define "tritonctl.environment" -}}
{{- $root := index . 0 -}}
- name: TRITON_CONTROL_KEY
  valueFrom: {secretKeyRef: {name: {{ $root.Values.triton.controlKey.existingSecret }}, key: {{ $root.Values.triton.controlKey.key }}}}
- name: CONTROLPLANE_API__HOST
  value: 0.0.0.0
- name: CONTROLPLANE_API__PORT
  value: "8090"
- name: CONTROLPLANE_AUTH__MODE
  value: required   # before the first key exists, every request is refused
{{ include "tritonctl.store" . }}
{{- if include "tritonctl.workers" $root }}
- name: CONTROLPLANE_TRITON__DISCOVER
  value: "true"
- name: CONTROLPLANE_TRITON__AGENT_KEY
  valueFrom: {secretKeyRef: {name: {{ $root.Values.workers.agentKey.existingSecret }}, key: {{ $root.Values.workers.agentKey.key }}}}
- name: CONTROLPLANE_TRITON__AGENT_CONTROL_KEY
  valueFrom: {secretKeyRef: {name: {{ $root.Values.triton.controlKey.existingSecret }}, key: {{ $root.Values.triton.controlKey.key }}}}
{{- end }}
{{- end -}}

{{/* Where the store is, for every process. Argument: a list of the root context and the Secret with its S3 credentials. */}}
{{- define "tritonctl.store" -}}
{{- $root := index . 0 -}}
{{- $store := $root.Values.store -}}
{{- $secret := index . 1 -}}
- name: TRITONCTL_DATA_DIR
  value: /var/lib/tritonctl/data   # not the volume's own folder, which belongs to root
- name: CONTROLPLANE_CONFIG
  value: /etc/tritonctl/config.toml
- name: CONTROLPLANE_STORE__URL
  value: {{ $store.url | quote }}
{{- with $store.endpointUrl }}
- name: CONTROLPLANE_STORE__ENDPOINT_URL
  value: {{ . | quote }}
{{- end }}
{{- with $store.region }}
- name: CONTROLPLANE_STORE__REGION
  value: {{ . | quote }}
{{- end }}
{{- if $store.caConfigMap.name }}
- name: AWS_CA_BUNDLE
  value: /etc/tritonctl-ca/{{ $store.caConfigMap.key }}
{{- end }}
{{- if $secret }}
- name: AWS_ACCESS_KEY_ID
  valueFrom: {secretKeyRef: {name: {{ $secret }}, key: {{ $store.secretKeys.accessKeyId }}}}
- name: AWS_SECRET_ACCESS_KEY
  valueFrom: {secretKeyRef: {name: {{ $secret }}, key: {{ $store.secretKeys.secretAccessKey }}}}
{{- end }}
{{- end -}}

{{/* Whether there are workers; empty if there are none. */}}
{{- define "tritonctl.workers" -}}
{{- if or .Values.workers.autoscaled (gt (int .Values.workers.replicas) 0) }}yes{{ end -}}
{{- end -}}

{{/* Mounts of every process of the control plane, and the volumes for them. */}}
{{- define "tritonctl.mounts" -}}
- name: data
  mountPath: /var/lib/tritonctl
- name: tmp
  mountPath: /tmp
- name: config
  mountPath: /etc/tritonctl
  readOnly: true
{{- if .Values.store.caConfigMap.name }}
- name: store-ca
  mountPath: /etc/tritonctl-ca
  readOnly: true
{{- end }}
{{- end -}}

{{- define "tritonctl.volumes" -}}
- name: tmp
  emptyDir: {}
- name: config
  configMap:
    name: {{ include "tritonctl.fullname" . }}-config
{{- with .Values.store.caConfigMap.name }}
- name: store-ca
  configMap:
    name: {{ . }}
{{- end }}
{{- end -}}

{{/* A PodDisruptionBudget. Argument: a list of the root context, the object's name, the component, its values. */}}
{{- define "tritonctl.podDisruptionBudget" -}}
{{- $root := index . 0 -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ index . 1 }}
  namespace: {{ $root.Release.Namespace }}
  labels: {{- include "tritonctl.labels" (list $root (index . 2)) | nindent 4 }}
spec:
  maxUnavailable: {{ (index . 3).podDisruptionBudget.maxUnavailable }}
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels: {{- include "tritonctl.selector" (list $root (index . 2)) | nindent 6 }}
{{- end -}}

{{/* Triton's container, without its name. */}}
{{- define "tritonctl.triton" -}}
{{ include "tritonctl.image" (list . .Values.triton.image) }}
# The control plane makes the repository's folder. The key for model control is read from a file, so that it is in
# no environment. docs/internals/triton.md explains the options.
command:
  - sh
  - -c
  - |
    until [ -d /srv/triton/models ]; do sleep 1; done
    key=$(cat /run/tritonctl/control-key) && exec tritonserver "$@" \
      "--http-restricted-api=model-repository,trace,logging:tritonctl-key=$key" \
      "--grpc-restricted-protocol=model-repository,trace,logging:tritonctl-key=$key"
  - tritonserver
args:
  - --model-repository=/srv/triton/models
  - --model-control-mode=explicit
  - --strict-readiness=false
  - --disable-auto-complete-config
  - --metrics-config=summary_latencies=true
  - --exit-timeout-secs={{ .Values.triton.exitSeconds }}
  {{- range .Values.triton.extraArgs }}
  - {{ . | quote }}
  {{- end }}
env:
  - {name: HOME, value: /tmp}
  - {name: CUDA_DEVICE_ORDER, value: PCI_BUS_ID}   # the control plane's numbers of GPUs
securityContext:
  {{- include "tritonctl.containerSecurity" . | nindent 2 }}
  runAsUser: 1000
  runAsGroup: 1000
ports:
  - {name: http, containerPort: 8000}
  - {name: grpc, containerPort: 8001}
  - {name: metrics, containerPort: 8002}
startupProbe:
  httpGet: {path: /v2/health/live, port: http}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 120
livenessProbe:
  httpGet: {path: /v2/health/live, port: http}
  periodSeconds: 10
  timeoutSeconds: 10
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /v2/health/ready, port: http}
  periodSeconds: 5
  timeoutSeconds: 5
{{- $resources := deepCopy .Values.triton.resources }}
{{- if gt (int .Values.triton.gpu.count) 0 }}
{{- $resources = mergeOverwrite $resources (dict "limits" (dict .Values.triton.gpu.resource (int .Values.triton.gpu.count))) }}
{{- end }}
resources: {{- toYaml $resources | nindent 2 }}
volumeMounts:
  - {name: repository, mountPath: /srv/triton, readOnly: true}
  - {name: control-key, mountPath: /run/tritonctl, readOnly: true}
  - {name: shm, mountPath: /dev/shm}
  - {name: triton-tmp, mountPath: /tmp}
{{- end -}}
