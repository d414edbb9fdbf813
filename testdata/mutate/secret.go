package main

import (
	"bytes"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// addKey is struct fscrypt_add_key_arg with a key behind it (linux/fscrypt.h).
type addKey struct {
	unix.FscryptAddKeyArg
	raw [64]byte
}

// secret makes a folder that is encrypted, with a file and a link in it.
func (f *filler) secret() error {
	if !f.encrypt {
		return nil
	}
	root, err := os.Open(f.dir)
	if err != nil {
		return err
	}
	defer root.Close()
	var key addKey
	key.Key_spec.Type = unix.FSCRYPT_KEY_SPEC_TYPE_IDENTIFIER
	key.Raw_size = uint32(len(key.raw))
	copy(key.raw[:], bytes.Repeat([]byte("no secret"), 8))
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, root.Fd(), unix.FS_IOC_ADD_ENCRYPTION_KEY, uintptr(unsafe.Pointer(&key))); errno != 0 {
		return fmt.Errorf("add a key: %w", errno)
	}
	dir := f.path("secret")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	policy := unix.FscryptPolicyV2{
		Version: unix.FSCRYPT_POLICY_V2, Contents_encryption_mode: unix.FSCRYPT_MODE_AES_256_XTS,
		Filenames_encryption_mode: unix.FSCRYPT_MODE_AES_256_CTS, Flags: unix.FSCRYPT_POLICY_FLAGS_PAD_16,
	}
	copy(policy.Master_key_identifier[:], key.Key_spec.U[:])
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, d.Fd(), unix.FS_IOC_SET_ENCRYPTION_POLICY, uintptr(unsafe.Pointer(&policy))); errno != 0 {
		return fmt.Errorf("set a policy: %w", errno)
	}
	for _, name := range []string{"one", "another", longName + longName} {
		if err := os.WriteFile(f.path("secret", name), bytes.Repeat([]byte(name), 40), 0o600); err != nil {
			return err
		}
	}
	return os.Symlink("one", f.path("secret", "link"))
}
