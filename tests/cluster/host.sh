#!/usr/bin/env bash
# The first process of a pretended host; `hosts.py` starts it in network, PID, mount, UTS and IPC namespaces of its own.
#
#   host.sh NAME FOLDER SHARED SHOWN...
#
# FOLDER becomes the host's /tmp, /root and sshd settings; SHARED is the same folder on all hosts, writable; each SHOWN
# is a folder of this machine, read-only.
set -euo pipefail
name=$1
shift
folders=("$@")

hostname "$name"
# What is shown may lie below what is covered: it is held in /mnt while the covers go on.
mount -t tmpfs none /mnt
for n in "${!folders[@]}"; do
  mkdir "/mnt/$n"
  mount --rbind "${folders[$n]}" "/mnt/$n"
done
mount --bind /mnt/0/tmp /tmp
mount --bind /mnt/0/root /root
mount --bind /mnt/0/hosts /etc/hosts
mount --bind /dev/null "$(readlink -f /etc/resolv.conf)" # a name server that is out of reach costs 10 s a question
mount -t tmpfs -o mode=1777,size=1g none /dev/shm
mount -t tmpfs -o mode=755 none /run
mkdir -p /run/sshd
install -m 600 /mnt/0/host_key /run/sshd/host_key
install -m 600 /mnt/0/sshd_config /run/sshd/config
for n in "${!folders[@]}"; do
  ((n)) || continue
  mkdir -p "${folders[$n]}"
  mount --rbind "/mnt/$n" "${folders[$n]}"
  ((n == 1)) || mount -o remount,bind,ro "${folders[$n]}"
done
umount --lazy /mnt
cd /
exec env --ignore-environment HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin /usr/sbin/sshd -D -e -f /run/sshd/config
