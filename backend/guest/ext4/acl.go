package ext4

import "encoding/binary"

// The forms of a POSIX ACL: on disk entries have an id only where it means something,
// getxattr(2) reports one for each (uapi/linux/posix_acl_xattr.h).
const (
	aclDiskVersion  = 1
	aclXattrVersion = 2
	aclHeader       = 4 // bytes, in both forms
	aclShortEntry   = 4 // bytes
	aclLongEntry    = 8 // bytes
	aclNoID         = 0xffffffff

	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20
)

// convertACL makes what getxattr(2) reports of what is on disk.
func convertACL(b []byte) ([]byte, error) {
	le := binary.LittleEndian
	if len(b) < aclHeader || le.Uint32(b) != aclDiskVersion {
		return nil, corrupt("an ACL of %d bytes is not of version %d", len(b), aclDiskVersion)
	}
	out := le.AppendUint32(make([]byte, 0, aclHeader+2*len(b)), aclXattrVersion)
	for rest := b[aclHeader:]; len(rest) > 0; {
		if len(rest) < aclShortEntry {
			return nil, corrupt("an ACL ends within an entry")
		}
		size, id := aclShortEntry, uint32(aclNoID)
		switch tag := le.Uint16(rest); tag {
		case aclUserObj, aclGroupObj, aclMask, aclOther:
		case aclUser, aclGroup:
			if size = aclLongEntry; len(rest) < size {
				return nil, corrupt("an ACL ends within an entry")
			}
			id = le.Uint32(rest[4:])
		default:
			return nil, corrupt("an ACL has an entry with tag 0x%x", tag)
		}
		out = append(out, rest[:4]...)
		out = le.AppendUint32(out, id)
		rest = rest[size:]
	}
	return out, nil
}
