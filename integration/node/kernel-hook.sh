#!/bin/sh
# Hook of mmdebstrap, which passes the new root as argument. Unpacks the cloud kernel without
# installing the package. The package would also install an initramfs generator and udev, which the
# node does not need. apt verifies these packages like all others.
set -eu
root=$1
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work" # apt's download user needs access
cd "$work"
# The meta package depends on the current version. Newer suites split this version into the packages
# image, binary and modules.
packages=$(apt-cache depends --recurse --no-pre-depends --no-recommends --no-suggests --no-conflicts --no-breaks \
	--no-replaces --no-enhances linux-image-cloud-amd64 | grep -E '^linux-(image|binary|modules)-[0-9]' | sort -u)
# shellcheck disable=SC2086 # one word for each package
apt-get -q download $packages
for deb in *.deb; do
	dpkg-deb --extract "$deb" "$root"
done
for version in "$root"/usr/lib/modules/*; do
	chroot "$root" depmod "$(basename "$version")"
done
