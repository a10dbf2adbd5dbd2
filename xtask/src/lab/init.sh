#!/usr/bin/busybox sh
# PID 1 of the lab: sets the machine up, runs /lab/command with its outputs on two virtio-serial
# ports, says the exit code on a third, and powers off. The console is left to the kernel.
exec </dev/console >/dev/console 2>&1
export PATH=/usr/local/bin:/usr/bin:/usr/sbin HOME=/root TERM=dumb LANG=C.UTF-8 KILN_LAB=1
[ -x /usr/local/bin/firecracker ] && export KILN_FIRECRACKER=/usr/local/bin/firecracker
[ -x /usr/local/bin/jailer ] && export KILN_JAILER=/usr/local/bin/jailer

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs -o mode=755 run /run
mount -t tmpfs -o mode=1777 tmp /tmp
mkdir -p /dev/pts /dev/shm
mount -t devpts -o ptmxmode=666 pts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t cgroup2 cgroup /sys/fs/cgroup
for link in fd:/proc/self/fd stdin:/proc/self/fd/0 stdout:/proc/self/fd/1 stderr:/proc/self/fd/2; do
    [ -e "/dev/${link%%:*}" ] || ln -s "${link#*:}" "/dev/${link%%:*}"
done
hostname lab
ip link set lo up
while read -r module; do modprobe "$module" || echo "lab: cannot load $module"; done < /lab/modules

# Prints the device of a port; ports appear some time after their driver.
port() {
    tries=0
    while [ "$tries" -lt 200 ]; do
        for entry in /sys/class/virtio-ports/*; do
            [ "$(cat "$entry/name" 2>/dev/null)" = "$1" ] && echo "/dev/${entry##*/}" && return
        done
        tries=$((tries + 1))
        usleep 50000
    done
    echo "lab: no port $1" >&2
    poweroff -f
}

# A port can be opened once only, so that /dev/stderr would not open for the command: pipes
# stand between.
mkfifo /run/lab.out /run/lab.err
cat /run/lab.out > "$(port lab.out)" & out=$!
cat /run/lab.err > "$(port lab.err)" & err=$!
cd /root
setsid /usr/bin/sh /lab/command </dev/null >/run/lab.out 2>/run/lab.err
code=$?
# What the command left running would hold the pipes open.
for pass in 1 2 3; do
    for process in /proc/[0-9]*; do
        case ${process#/proc/} in
            1 | "$out" | "$err") ;;
            *) kill -9 "${process#/proc/}" ;;
        esac
    done 2>/dev/null
done
wait "$out" "$err"
echo "exit $code" > "$(port lab.exit)"
sync
poweroff -f
