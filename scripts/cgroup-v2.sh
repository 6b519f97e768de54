#!/usr/bin/env bash
# Runs the check of budgets (`larger-than-ram.py --check-budgets`) under control groups of version 2, whatever this machine has: QEMU
# boots Debian's kernel, the model lies on ext4. Exit code 0: every budget held, with the same tokens.
#
#   scripts/cgroup-v2.sh [MODEL] [ARG..]     fixtures/moe-q4_k_m.gguf where none is named; further arguments for the check
#
# Needs root (for apt) and the release build of wayinfer. Everything is emulated, and slow: a small model does.
set -euo pipefail
cd "$(dirname "$0")/.."

model=${1:-fixtures/moe-q4_k_m.gguf}
work=$PWD/target/cgroup-v2
python=$(/usr/bin/python3 -c 'import sys; print(f"python{sys.version_info.major}.{sys.version_info.minor}")')
mkdir -p "$work"
exec 9>"$work/lock"
flock -n 9 || { echo "another run has $work" >&2; exit 2; }

needed=(qemu-system-x86 e2fsprogs busybox-static python3)
dpkg -s "${needed[@]}" >/dev/null 2>&1 || { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${needed[@]}"; }
if [ ! -e "$work/vmlinuz" ]; then
    (
        rm -rf "$work/kernel" && mkdir "$work/kernel" && cd "$work/kernel"
        apt-get download -qq -o APT::Sandbox::User=root "$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image-/ { print $2; exit }')"
        dpkg-deb -x linux-image-*.deb . && mv boot/vmlinuz-* "$work/vmlinuz"
    )
    rm -rf "$work/kernel"
fi

# The root: programs with their libraries, the scripts, the model.
root=$work/root
rm -rf "$root"
mkdir -p "$root"/{bin,dev,proc,sys,tmp,usr/lib,scripts}
cp "$(command -v busybox)" "$root/bin/busybox"
cp "/usr/bin/$python" "$root/bin/python3"
cp -r "/usr/lib/$python" "$root/usr/lib/"
strip -o "$root/bin/wayinfer" target/release/wayinfer
for binary in "$root"/bin/*; do
    { ldd "$binary" 2>/dev/null || true; } | { grep -o '/[^ ]*' || true; } |
        while read -r library; do install -D "$library" "$root$library"; done
done
cp scripts/*.py "$root/scripts/"
ln "$model" "$root/model.gguf" 2>/dev/null || cp "$model" "$root/model.gguf"
cp fixtures/moe-q4_k_m.gguf "$root/small.gguf"
cat >"$root/init" <<'END'
#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mount -t tmpfs tmp /tmp
mount -t cgroup2 groups /sys/fs/cgroup
code=0
fault() {
    echo "$1"
    code=1
}

# What is relied on has to be seen: a group's limit kills, and the default budget comes from it.
groups=/sys/fs/cgroup
echo +memory >$groups/cgroup.subtree_control
mkdir $groups/small
echo 256M >$groups/small/memory.max
in_group() { sh -c "echo \$\$ >$groups/small/cgroup.procs; $1"; }
in_group "dd if=/dev/zero of=/dev/null bs=512M count=1" 2>/dev/null
grep -q "^oom_kill [1-9]" $groups/small/memory.events || fault "a group's limit does not kill"
budget="wayinfer inspect --plan --json /small.gguf"
limited=$(in_group "$budget" | sed -n 's/.*"budget_bytes": *\([0-9]*\).*/\1/p')
free=$($budget | sed -n 's/.*"budget_bytes": *\([0-9]*\).*/\1/p')
echo "default budget: $free bytes, in a group of 256 MiB: $limited"
[ "$limited" -gt 0 ] && [ "$limited" -lt $((256 << 20)) ] && [ "$free" -gt $((256 << 20)) ] || fault "the default budget does not heed the limit"

python3 /scripts/larger-than-ram.py --check-budgets /model.gguf --wayinfer /bin/wayinfer $(cat /arguments) || code=1
echo "exit code $code"
sleep 1
poweroff -f
END
chmod +x "$root/init"
echo "${@:2}" >"$root/arguments"
size=$(du -sm "$root" | cut -f1)
rm -f "$work/disk"
mke2fs -q -t ext4 -d "$root" "$work/disk" "$((size + size / 8 + 64))M"
rm -rf "$root"

qemu-system-x86_64 -machine q35,accel=tcg -cpu max -smp 2 -m "${MEMORY:-1G}" -nodefaults -no-reboot -display none -serial stdio \
    -kernel "$work/vmlinuz" -append "console=ttyS0 loglevel=3 panic=-1 root=/dev/nvme0n1 rw init=/init" \
    -drive "file=$work/disk,if=none,id=disk,format=raw,cache=none" -device nvme,drive=disk,serial=1 </dev/null | tee "$work/serial.txt"
rm -f "$work/disk"
code=$(sed -n 's/^exit code \([0-9]*\).*/\1/p' "$work/serial.txt")
[ -n "$code" ] || { echo "the emulated machine stopped before the check did: $work/serial.txt" >&2; exit 2; }
exit "$code"
