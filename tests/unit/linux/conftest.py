"""File systems that are mounted once for all tests here."""

from tests.hostparts import any_disk_directory, btrfs_directory, ext4_directory, tmpfs_directory, xfs_directory

__all__ = ["any_disk_directory", "btrfs_directory", "ext4_directory", "tmpfs_directory", "xfs_directory"]
