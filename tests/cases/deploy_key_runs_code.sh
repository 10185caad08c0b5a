#!/bin/bash
# A key with the scope `deploy` tries to run a shell script of its own on the Triton host, by a deployment's `parameters`
# (EXECUTION_ENV_PATH of Triton's Python backend) and a file that lies beside model.onnx in the artifact.
# Expected: the parameter is refused with 403, nothing is recorded and nothing runs.
# usage: deploy_key_runs_code.sh TRITONCTL API_URL DEPLOY_KEY_FILE MODEL_ONNX OUT
# OUT is a file that the script could write, if it ran: a folder that the server sees and may change.
set -u; ctl=$1 url=$2 key=$3 onnx=$4 out=$5
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
mkdir -p "$work/artifact/bin"; cp "$onnx" "$work/artifact/model.onnx"
echo "id > /var/tmp/$(basename "$out") 2>&1" > "$work/artifact/bin/activate"
"$ctl" push team-a-evil "$work/artifact" --url "$url" --api-key-file "$key" || exit 2
status=$(curl -s -o "$work/answer" -w '%{http_code}' -X PUT "$url/v1/deployments/team-a-evil" \
  -H "Authorization: Bearer $(cat "$key")" -H 'content-type: application/json' \
  -d '{"reference":"team-a-evil:1","settings":{"parameters":{"EXECUTION_ENV_PATH":"$$TRITON_MODEL_DIRECTORY/1"}}}')
head -c 600 "$work/answer"; echo
if [ "$status" != 403 ]; then
  for _ in $(seq 40); do [ -s "$out" ] && break; sleep 0.5; done
fi
if [ -s "$out" ]; then echo "VIOLATION: code of the artifact ran:"; cat "$out"; exit 1; fi
if [ "$status" != 403 ]; then echo "VIOLATION: the parameter was accepted ($status)"; exit 1; fi
echo "ok: nothing ran"
