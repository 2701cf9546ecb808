"""The fixed texts of what is installed: prose of the man pages, the unit, the frames of scripts and completions."""

from __future__ import annotations

INTRODUCTION = """\
s3backer shows a bucket as one big file, on which any filesystem goes. A volume is named s3://BUCKET[/PREFIX] or
file:///DIRECTORY. Credentials, region and endpoint come from the AWS environment variables and files, as for the AWS
command line.

What fsync, closing the file or a filesystem's own barriers have confirmed is in the bucket.
"""

UNIT_TEXT = """\
The unit s3backer@NAME.service serves the volume that /etc/s3backer/NAME.env describes:

    URL=s3://my-bucket/disk
    MOUNTPOINT=/mnt/disk
    OPTIONS=--memory 512MiB --threads 32

The file may also set variables such as AWS_PROFILE or AWS_ACCESS_KEY_ID; keep it readable by root only then. The
service is ready when the disk can be used. Stopping it waits as long as data goes out. If the store takes nothing for
two minutes, the service counts as failed, but the process is left alone and goes on trying: it is never killed with
data that is not stored.
"""

FILES = (
    ("/etc/s3backer/NAME.env", "What the unit s3backer@NAME.service mounts."),
    ("MOUNTPOINT/file", "The disk."),
    ("MOUNTPOINT/stats", "Counters."),
)

FSTAB = """\
mount(8) runs this program for the types s3backer and fuse.s3backer. Lines of fstab(5) look like these:

    s3://my-bucket/disk   /mnt/disk   s3backer        _netdev,nofail,memory=512MiB   0 0
    my-bucket/disk        /mnt/disk   fuse.s3backer   _netdev,blockCacheThreads=32   0 0
    s3backer#my-bucket    /mnt/disk   fuse            _netdev,prefix=disk/           0 0
    /mnt/disk/file        /mnt/files  ext4            loop,_netdev,nofail,x-systemd.requires-mounts-for=/mnt/disk   0 0

A URL takes the options of 's3backer mount' without their dashes, or the original's. Anything else is a bucket, perhaps
with a prefix, or with the option test a directory, and takes the options and defaults of the original's form. FUSE's
own options go with both. The third line is for mount.fuse(8), which runs s3backer from /usr/local/bin.

The option ro makes the volume read-only too: it takes no mount token, and others may have it mounted. Options for
mount(8) and systemd, such as _netdev, nofail, noauto, user and x-systemd.*, are ignored.

The exit code is 0, 1 if it was called wrongly, and 32 if nothing was mounted.

umount(8) returns before the last data is in the bucket; the process that serves the disk stays until it is. Use
's3backer unmount' to wait for it, and the unit s3backer@.service rather than fstab for a disk that is written to until
the machine is shut down.
"""

UNIT = """\
# @MARKER@
[Unit]
Description=s3backer disk %I
Documentation=man:s3backer(1) man:s3backer-mount(1)
AssertPathExists=/etc/s3backer/%i.env
Wants=network-online.target
After=network-online.target
# What lies on the disk is mounted after it, and unmounted before it ends.
Before=remote-fs.target

[Service]
Type=notify
NotifyAccess=main
EnvironmentFile=/etc/s3backer/%i.env
ExecStart=@COMMAND@ mount --foreground $OPTIONS -- ${URL} ${MOUNTPOINT}
# Opening a volume may wait for a store that is slow.
TimeoutStartSec=5min
# Only the daemon itself is asked to stop. It extends this time whenever it has stored something.
KillMode=mixed
TimeoutStopSec=2min
# A process with data that is not stored yet is never killed: it goes on trying after the time-out.
SendSIGKILL=no
# The kernel must not free memory by ending the process that filesystems stand on.
OOMScoreAdjust=-900

[Install]
WantedBy=remote-fs.target
"""

SCRIPT = """\
#!/bin/sh
# @MARKER@
exec @COMMAND@ "$@"
"""

BASH = """\
# @MARKER@
_s3backer() {
    local word=${COMP_WORDS[COMP_CWORD]} words=""
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="@NAMES@"
    elif [[ $word == -* ]]; then
        case ${COMP_WORDS[1]} in
@OPTIONS@
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}
complete -o default -F _s3backer s3backer
"""

ZSH = """\
#compdef s3backer
# @MARKER@
_s3backer() {
    # The shell's own array "words" holds the line.
    local -a choices
    if (( CURRENT == 2 )); then
        choices=(@NAMES@)
        _describe command choices
    elif [[ $PREFIX == -* ]]; then
        case $words[2] in
@OPTIONS@
        esac
        _describe option choices
        return
    fi
    _files
}
_s3backer "$@"
"""

FISH = """\
# @MARKER@
@OPTIONS@
"""
