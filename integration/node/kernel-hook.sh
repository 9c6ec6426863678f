#!/bin/sh
# Run by mmdebstrap with the new root as argument. Unpacks the cloud kernel without installing it: its package would pull
# in an initramfs generator and udev, of which the node has no use. apt verifies the packages as it does all others.
set -eu
root=$1
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work" # apt's download user has to get in
cd "$work"
# The meta package names the current version; newer suites split that into image, binary and modules.
packages=$(apt-cache depends --recurse --no-pre-depends --no-recommends --no-suggests --no-conflicts --no-breaks \
	--no-replaces --no-enhances linux-image-cloud-amd64 | grep -E '^linux-(image|binary|modules)-[0-9]' | sort -u)
# shellcheck disable=SC2086 # one word for each package is meant
apt-get -q download $packages
for deb in *.deb; do
	dpkg-deb --extract "$deb" "$root"
done
for version in "$root"/usr/lib/modules/*; do
	chroot "$root" depmod "$(basename "$version")"
done
