#!/bin/sh
# Makes box.tar in the current directory: the root file system of an image, Debian's busybox and the libraries that it
# is linked to.
set -eu

mkdir -p box/bin box/etc box/tmp box/proc box/sys box/dev
for applet in $(busybox --list); do ln -s busybox "box/bin/$applet"; done
rm -f box/bin/busybox
cp "$(command -v busybox)" box/bin/busybox
# The dynamic variant: its libraries where its loader looks for them.
for library in $(ldd box/bin/busybox 2>/dev/null | grep -o '/[^ ]*'); do
    mkdir -p "box${library%/*}"
    cp -L "$library" "box$library"
done
tar -C box -cf box.tar.part .
mv box.tar.part box.tar
rm -rf box
