#!/bin/sh
# Makes the pretend machine of tests/clients and of contrib/bench/compare, as root of a user namespace in which an
# ordinary user and its subordinate ids are mapped, in new network, mount, PID, UTS, IPC and cgroup namespaces.
set -eu

mount --make-rshared /
mount -t tmpfs -o mode=755 tmpfs /mnt
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t tmpfs -o mode=1777 tmpfs /var/tmp
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /usr/local/bin
mount -t cgroup2 cgroup2 /sys/fs/cgroup
hostname machine

# Its /etc: the packages' files without the users, the name servers and the containers' settings of the real machine.
mkdir /mnt/etc
cp -a /etc/. /mnt/etc/ 2>/dev/null || true
cd /mnt/etc
rm -rf passwd group shadow gshadow subuid subgid resolv.conf containers/containers.conf* containers/storage.conf
printf '%s\n' root:x:0:0::/root:/bin/sh user:x:1000:1000::/mnt/home:/bin/sh nobody:x:65534:65534::/:/bin/false >passwd
printf '%s\n' root:x:0: user:x:1000: nogroup:x:65534: >group
echo user:2000:60000 >subuid
echo user:2000:60000 >subgid
printf 'nameserver %s\n' 127.0.0.1 ::1 >resolv.conf
mkdir -p containers
cat >containers/containers.conf <<'END'
# A machine without systemd.
[containers]
log_driver = "k8s-file"
default_sysctls = ["net.ipv4.ping_group_range=0 0"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "crun"
END
# Copies instead of overlays: a few megabytes, and every kernel can do it on every file system.
cat >containers/storage.conf <<'END'
[storage]
driver = "vfs"
graphroot = "/mnt/home/storage"
runroot = "/run/user/1000/storage"
rootless_storage_path = "/mnt/home/storage"
END
cd /
mount --bind /mnt/etc /etc

# The kernel honours the set-uid bit only of owners that are mapped here.
cp /usr/bin/newuidmap /usr/bin/newgidmap /usr/local/bin/
chmod 4755 /usr/local/bin/newuidmap /usr/local/bin/newgidmap

mkdir -p /run/user/1000 /mnt/home/.config/containers
chmod 700 /run/user/1000
chown -R 1000:1000 /run/user/1000 /mnt/home
