#!/bin/busybox sh
# shellcheck shell=dash
# The guest's first and only process of its own: sets the scene, runs the test, and ends the machine.
export PATH=/usr/bin:/usr/sbin HOME=/root
busybox mount -t proc proc /proc
busybox mount -t sysfs sysfs /sys
busybox mount -t securityfs securityfs /sys/kernel/security
busybox mount -t devtmpfs devtmpfs /dev
busybox --install -s /usr/bin
exec >/dev/ttyS0 2>&1
dmesg -n 1

# Whatever else could refuse something, so that only the profile is left to do it.
for setting in fs/protected_hardlinks fs/protected_regular fs/protected_symlinks fs/protected_fifos \
	kernel/yama/ptrace_scope; do
	[ ! -e "/proc/sys/$setting" ] || echo 0 >"/proc/sys/$setting"
done
# Every refusal is to be seen in the log.
echo 0 >/proc/sys/kernel/printk_ratelimit
ip link set lo up
ldconfig
for user in alice bob carol dave; do
	mkdir "/home/$user"
	chown "$user:$user" "/home/$user"
	chmod 700 "/home/$user"
done
# qbackup wants 256 MiB of room for qubesd, which takes little of it.
busybox mount -t tmpfs -o size=600m,mode=1777 tmpfs /tmp
# Each behind those that it needs, with its parameters.
while read -r module; do
	# shellcheck disable=SC2086
	insmod /modules/$module
done </modules/order

if apparmor_parser -r -K /etc/apparmor.d/qbackup-shell >/test/parser 2>&1; then
	/usr/sbin/sshd -f /etc/ssh/sshd_config -E /var/log/sshd
	timeout "${limit:-150}" /usr/bin/node /test/guest "${phases:-program,thin,layouts,hostile}" >/dev/ttyS1 2>&1
	code=$?
else
	cat /test/parser >/dev/ttyS1
	code=1
fi
echo "EXIT $code" >/dev/ttyS1
sync
# QEMU runs with -no-reboot.
reboot -f
