#!/usr/bin/busybox sh
# /init of the lab's initramfs: makes the disk appear and goes there.
bb=/usr/bin/busybox
$bb mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
while read -r module; do $bb insmod "$module" || echo "lab: cannot load $module"; done < /modules/order
$bb mount -t ext4 /dev/vda /mnt
$bb mount --move /dev /mnt/dev
exec $bb switch_root /mnt /lab/init
