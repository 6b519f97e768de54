#!/usr/bin/env bash
# Runs the tests of the kernels on an emulated CPU that has AVX-512 VNNI: for machines that have none. Debian's Bochs
# boots Debian's kernel with a RAM disk that holds the test binaries; what they print and their exit code come out here.
#
#   scripts/emulate.sh                     kernels, operations, and whole forward passes of small models
#   scripts/emulate.sh lib FILTER..        unit tests by name
#   scripts/emulate.sh one_arithmetic      forward passes of the models in WAYINFER_FIXTURES
set -euo pipefail
cd "$(dirname "$0")/.."

cpu=${EMULATED_CPU:-corei7_icelake_u} # one of those that `bochs --help cpu` lists
work=target/emulate
target=x86_64-unknown-linux-gnu
fixtures=${WAYINFER_FIXTURES:-moe-q4_k_m,odd-q8_0,mixed}
mkdir -p "$work"
exec 9>"$work/lock"
flock -n 9 || { echo "another run has $work" >&2; exit 2; }

# What is needed, by apt.
needed=(bochs bochsbios vgabios xorriso isolinux syslinux-common busybox-static cpio)
dpkg -s "${needed[@]}" >/dev/null 2>&1 || { apt-get update -qq && apt-get install -y -qq "${needed[@]}"; }
if ! compgen -G "$work/kernel/boot/vmlinuz-*" >/dev/null; then
    kernel=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends:/ { print $2; exit }')
    (cd "$work" && apt-get download -qq "$kernel" && dpkg-deb -x "$kernel"_*.deb kernel && rm "$kernel"_*.deb)
fi

# The test binary of the library or of a file in tests/, static and stripped.
rm -rf "$work/root" "$work/iso"
mkdir -p "$work/root"/{bin,dev,proc,tmp} "$work/iso/isolinux"
build() {
    local binary
    binary=$(RUSTFLAGS="-C target-feature=+crt-static" cargo test --locked --release --no-run --target "$target" "$@" 2>&1 |
        tee /dev/stderr | sed -n 's/^ *Executable .*(\(.*\))$/\1/p')
    strip -o "$work/root/bin/${2:-lib}" "$binary"
}
tests=()
add() { # the name of a binary, then the tests' names
    if [ "$1" = lib ]; then build --lib; else build --test "$1"; fi
    tests+=("/bin/$1 --test-threads=1 ${*:2} || code=1")
}
case "${1:-}" in
'')
    # Not what compares conversions to f16 with the definition: Bochs 2.7 rounds ties of `vcvtps2ph` away from zero.
    add lib kernels::tests::avx512 kernels::tests::a_batch kernels::tests::threads \
        ops::tests::rows::instances ops::tests::rows::vector ops::tests::attention::an_f32 ops::tests::attention::vector
    add one_arithmetic with_an_f32_cache
    ;;
*) add "$@" ;;
esac

# The RAM disk: the fixtures are where the tests were compiled to look for them.
cp "$(command -v busybox)" "$work/root/bin/busybox"
mkdir -p "$work/root$PWD/fixtures"
for name in ${fixtures//,/ }; do cp "fixtures/$name.gguf" "$work/root$PWD/fixtures/"; done
{
    echo '#!/bin/busybox sh'
    echo 'busybox() { /bin/busybox "$@"; }'
    echo 'busybox mount -t proc proc /proc; busybox mount -t devtmpfs dev /dev'
    echo "export RAYON_NUM_THREADS=1 WAYINFER_NEEDS_ISA=avx512 WAYINFER_FIXTURES=$fixtures; code=0"
    printf '%s\n' "${tests[@]}"
    echo 'echo "exit code $code"; busybox sleep 1; busybox poweroff -f'
} >"$work/root/init"
chmod +x "$work/root/init"
(cd "$work/root" && find . | cpio -o -H newc --quiet) >"$work/iso/initrd"

# The disc. Bochs 2.7 says that it has what it has not, or not as Linux wants it: PKU without its place in XSAVE's area, XSAVEC and
# XSAVES with sizes of the plain layout, FSRM without ERMS (for which Linux 6.1's memmove runs wild).
cp "$work"/kernel/boot/vmlinuz-* "$work/iso/vmlinuz"
cp /usr/lib/ISOLINUX/isolinux.bin /usr/lib/syslinux/modules/bios/ldlinux.c32 "$work/iso/isolinux/"
cat >"$work/iso/isolinux/isolinux.cfg" <<END
DEFAULT linux
LABEL linux
  KERNEL /vmlinuz
  INITRD /initrd
  APPEND console=ttyS0 quiet mitigations=off panic=-1 clearcpuid=515,321,323,580
END
xorriso -as mkisofs -quiet -o "$work/disc.iso" -b isolinux/isolinux.bin -c isolinux/boot.cat -no-emul-boot \
    -boot-load-size 4 -boot-info-table "$work/iso" 2>/dev/null

cat >"$work/bochsrc" <<END
display_library: rfb, options="timeout=0"
cpu: model=$cpu, ips=40000000, reset_on_triple_fault=0
memory: guest=512, host=512
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/vgabios/vgabios.bin
ata0-master: type=cdrom, path=$work/disc.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=$work/serial.txt
log: $work/bochs.log
panic: action=fatal
END
echo c >"$work/continue" # Debian's Bochs starts in its debugger
rm -f "$work/serial.txt"
touch "$work/serial.txt"
tail -f "$work/serial.txt" 9>&- &
printer=$!
# Powering off is a panic to Bochs: its exit code says nothing.
bochs -f "$work/bochsrc" -rc "$work/continue" </dev/null >"$work/bochs.out" 2>&1 || true
sleep 1
kill "$printer"
code=$(sed -n 's/^exit code \([0-9]*\).*/\1/p' "$work/serial.txt")
[ -n "$code" ] || { echo "the emulated machine stopped before the tests did: $work/bochs.out, $work/bochs.log" >&2; exit 2; }
exit "$code"
