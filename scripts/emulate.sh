#!/usr/bin/env bash
# Runs the tests of the kernels on an emulated CPU that has AVX-512, AVX-VNNI and AMX: for machines that have none. Bochs
# boots Debian's kernel with a RAM disk that holds the test binaries; what they print and their exit code come out here.
#
#   scripts/emulate.sh                     kernels, operations, and whole forward passes of small models
#   scripts/emulate.sh lib FILTER..        unit tests by name
#   scripts/emulate.sh one_arithmetic      forward passes of the models in WAYINFER_FIXTURES
#   scripts/emulate.sh exe FILE ARG..      an executable
set -euo pipefail
cd "$(dirname "$0")/.."

cpu=${EMULATED_CPU:-sapphire_rapids} # one of those that Bochs lists (`--help cpu`)
needs=${WAYINFER_NEEDS_ISA:-amx,avx512,avx512-256,avxvnni,avx2} # kernel sets that the CPU must have
work=$PWD/target/emulate
target=x86_64-unknown-linux-gnu
fixtures=${WAYINFER_FIXTURES:-moe-q4_k_m,odd-q8_0,mixed}
mkdir -p "$work"
exec 9>"$work/lock"
flock -n 9 || { echo "another run has $work" >&2; exit 2; }

# What is needed, by apt.
needed=(bochsbios vgabios xorriso isolinux syslinux-common busybox-static cpio g++ make)
dpkg -s "${needed[@]}" >/dev/null 2>&1 || { apt-get update -qq && apt-get install -y -qq "${needed[@]}"; }

# Of later Debians, by an apt with lists and a state of its own: the first Bochs that has AMX, as source, for it takes AMX's signed
# bytes as unsigned; and the first kernel that can be told that a CPU has what it does not say it has (`setcpuid`).
fetch() { # into the current folder
    local apt=$work/apt debian kernel
    # Where this machine has its own packages from, security updates apart.
    debian=$(apt-get indextargets --format '$(REPO_URI) $(LABEL)' 'Created-By: Packages' 'Component: main' \
        | awk '$2 == "Debian" { print $1; exit }')
    local key="[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"
    mkdir -p "$apt"/{lists,archives}/partial
    touch "$apt/status"
    printf '%s\n' "deb-src $key $debian trixie main" "deb $key $debian trixie-backports main" >"$apt/sources.list"
    cat >"$apt/conf" <<END
Dir::Etc::SourceList "$apt/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
Dir::State "$apt";
Dir::State::Status "$apt/status";
Dir::Cache "$apt";
APT::Sandbox::User "root";
END
    export APT_CONFIG=$apt/conf
    apt-get update -qq
    apt-get source -qq --tar-only --download-only bochs
    kernel=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image-/ { print $2; exit }')
    apt-get download -qq "${kernel/image/binary}"
    rm -rf "$apt"
}
if [ ! -e "$work/bochs" ]; then
    rm -rf "$work/src" && mkdir "$work/src"
    (
        cd "$work/src"
        fetch
        dpkg-deb -x linux-binary-*.deb . && mv usr/lib/modules/*/vmlinuz "$work/"
        tar -xf bochs_*.orig.tar.xz --strip-components=1
        signed='s/Bit8u/Bit8s/g'
        sed -i -e "/^BX_CPP_INLINE Bit32u DPBDSS/,/^}/$signed" -e "/^BX_CPP_INLINE Bit32u DPBDSU/,/^}/{/xbyte\[4\]/$signed}" \
            -e "/^BX_CPP_INLINE Bit32u DPBDUS/,/^}/{/ybyte\[4\]/$signed}" cpu/avx/amx.cc
        ./configure --enable-x86-64 --enable-avx --enable-evex --enable-amx --enable-all-optimizations \
            --with-nogui --disable-docbook
        make -j"$(nproc)"
        strip -o "$work/bochs" bochs
    ) >"$work/build.log" 2>&1 || { echo "no emulator: $work/build.log" >&2; exit 2; }
    rm -rf "$work/src"
fi

# The test binary of the library or of a file in tests/, static and stripped.
rm -rf "$work/disk" "$work/iso"
mkdir -p "$work/disk"/{bin,dev,proc,tmp} "$work/iso/isolinux"
build() {
    local binary
    binary=$(RUSTFLAGS="-C target-feature=+crt-static" cargo test --locked --release --no-run --target "$target" "$@" 2>&1 |
        tee /dev/stderr | sed -n 's/^ *Executable .*(\(.*\))$/\1/p')
    strip -o "$work/disk/bin/${2:-lib}" "$binary"
}
tests=()
add() { # the name of a binary, then the tests' names
    if [ "$1" = lib ]; then build --lib; else build --test "$1"; fi
    tests+=("chrt -f 1 /bin/$1 --test-threads=1 ${*:2} || code=1")
}
case "${1:-}" in
'')
    add lib kernels::tests::amx kernels::tests::avx kernels::tests::a_batch kernels::tests::threads \
        ops::tests::rows::instances ops::tests::rows::vector ops::tests::attention::an_f32 ops::tests::attention::vector
    add one_arithmetic with_an_f32_cache
    ;;
exe) strip -o "$work/disk/bin/exe" "$2" && tests+=("chrt -f 1 /bin/exe ${*:3} || code=1") ;;
*) add "$@" ;;
esac

# The RAM disk: the fixtures are where the tests were compiled to look for them.
cp "$(command -v busybox)" "$work/disk/bin/busybox"
cp "$(command -v chrt)" "$work/disk/bin/chrt"
for binary in "$work"/disk/bin/*; do
    { ldd "$binary" 2>/dev/null || true; } | { grep -o '/[^ ]*' || true; } |
        while read -r library; do install -D "$library" "$work/disk$library"; done
done
mkdir -p "$work/disk$PWD/fixtures"
for name in ${fixtures//,/ }; do cp "fixtures/$name.gguf" "$work/disk$PWD/fixtures/"; done
{
    echo '#!/bin/busybox sh'
    echo 'busybox() { /bin/busybox "$@"; }'
    echo 'busybox mount -t proc proc /proc; busybox mount -t devtmpfs dev /dev'
    echo 'echo -1 >/proc/sys/kernel/sched_rt_runtime_us; chrt() { /bin/chrt "$@"; }'
    echo "export RAYON_NUM_THREADS=1 WAYINFER_NEEDS_ISA=$needs WAYINFER_FIXTURES=$fixtures; code=0"
    printf '%s\n' "${tests[@]}"
    echo 'echo "exit code $code"; busybox sleep 1; busybox poweroff -f'
} >"$work/disk/init"
chmod +x "$work/disk/init"
(cd "$work/disk" && find . | cpio -o -H newc --quiet) >"$work/iso/initrd"

# The disc. Linux wants XFD (feature 324), which Bochs lacks, for AMX: it is told that it is there, and its settings have no effect.
# Then Linux does not know when a thread starts to use tiles, and does not save them when it turns to another thread: threads
# run until they wait for something (`chrt`), never with tiles in use. Bochs knows no APERF and MPERF (124), fails where
# five levels of pages meet its BIOS, and runs stale code where indirect branches are patched at boot.
cp "$work/vmlinuz" "$work/iso/"
cp /usr/lib/ISOLINUX/isolinux.bin /usr/lib/syslinux/modules/bios/ldlinux.c32 "$work/iso/isolinux/"
cat >"$work/iso/isolinux/isolinux.cfg" <<END
DEFAULT linux
LABEL linux
  KERNEL /vmlinuz
  INITRD /initrd
  APPEND console=ttyS0 loglevel=1 panic=-1 spectre_v2=retpoline spectre_v2_user=off pti=off ibt=off no5lvl clearcpuid=124 setcpuid=324
END
xorriso -as mkisofs -quiet -o "$work/disc.iso" -b isolinux/isolinux.bin -c isolinux/boot.cat -no-emul-boot \
    -boot-load-size 4 -boot-info-table "$work/iso" 2>/dev/null

cat >"$work/bochsrc" <<END
display_library: nogui
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
rm -f "$work/serial.txt"
touch "$work/serial.txt"
tail -f "$work/serial.txt" 9>&- &
printer=$!
# Powering off is a panic to Bochs: its exit code says nothing.
"$work/bochs" -q -f "$work/bochsrc" </dev/null >"$work/bochs.out" 2>&1 || true
sleep 1
kill "$printer"
code=$(sed -n 's/^exit code \([0-9]*\).*/\1/p' "$work/serial.txt")
[ -n "$code" ] || { echo "the emulated machine stopped before the tests did: $work/bochs.out, $work/bochs.log" >&2; exit 2; }
exit "$code"
