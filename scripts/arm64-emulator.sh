# To be sourced: programs for ARM64 on this machine. The kernel is told that they are qemu's, those too that they start
# themselves: in a namespace of its own, as Linux 6.7 and later have it.

misc=/proc/sys/fs/binfmt_misc

# Runs a command where there is such an emulator, and has libraries for what is linked to some.
emulated() {
    local head='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
    local mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
    local emulator=":wayinfer-arm64:M::$head:$mask:$(command -v qemu-aarch64):"
    QEMU_LD_PREFIX=/usr/aarch64-linux-gnu unshare --user --map-root-user --mount bash -euc "
        mount -t binfmt_misc none $misc
        printf %s '$emulator' >$misc/register
        exec \"\$@\"" emulated "$@"
}

# Whether this is such a place.
is_emulated() { [ -e "$misc/wayinfer-arm64" ]; }
