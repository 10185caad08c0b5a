#!/bin/sh
# Writes .env for docker-compose.yml with random secrets. Run it in the folder of docker-compose.yml:
#
#   sh deploy/make-env.sh
#
# An .env that exists is left alone.
set -eu
umask 077
if [ -e .env ]; then
  echo "make-env: .env exists and was left alone; remove it to make a new one" >&2
  exit 1
fi
random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
mkdir -p deploy/secrets
while IFS= read -r line; do
  case "$line" in
    *=@random@) printf '%s=%s\n' "${line%%=*}" "$(random)" ;;
    *) printf '%s\n' "$line" ;;
  esac
done < deploy/compose.env.example > .env.incomplete
mv .env.incomplete .env
echo "wrote .env (readable by its owner alone)"
