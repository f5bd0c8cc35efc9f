package fleet

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"strconv"
	"strings"
)

// EntryOutcome is what came of an operation.
type EntryOutcome string

// The outcomes of an entry.
const (
	EntryDone    EntryOutcome = "done"
	EntryFailed  EntryOutcome = "failed"  // allowed, tried, and not possible
	EntryRefused EntryOutcome = "refused" // not allowed
	EntrySkipped EntryOutcome = "skipped" // stepped over by --skip-command
)

// Entry is one line of the audit log. It is computed in Apply, so it is the
// same on every node.
//
// The chain. An entry's hash covers the hash of the entry before it, its head
// (what cannot be a secret) and one salted hash for each field that can be:
//
//	hash = SHA-256(prev, SHA-256(head), leaf(by), leaf(args), leaf(reason), leaf(text))
//	leaf(f) = SHA-256(salt(f), value of f)
//	salt(by), salt(args), salt(reason), salt(text) = the four quarters of SHA-512(Salt)
//
// so that a field with a leaked secret in it can be replaced by its leaf, and
// the salts of the others be kept singly, and the chain still verifies while
// the secret cannot be guessed back.
type Entry struct {
	N     EntryNo `json:"n"`
	Index uint64  `json:"index"` // of the Raft log
	At    Time    `json:"at"`

	By         Principal       `json:"by"`
	ApprovedBy []Principal     `json:"approved_by,omitempty"`
	Role       Role            `json:"role"` // that By had
	Via        string          `json:"via"`  // surface and version: "cli/0.1.0", "chat", "loop/watch"
	Op         string          `json:"op"`
	Key        string          `json:"key,omitempty"`
	Args       json.RawMessage `json:"args,omitempty"` // secrets redacted
	Reason     string          `json:"reason,omitempty"`
	Incident   string          `json:"incident,omitempty"`
	Plan       string          `json:"plan,omitempty"` // hash of the confirmed plan

	Outcome EntryOutcome `json:"outcome"`
	Code    Code         `json:"code,omitempty"`
	Text    string       `json:"text"`            // what was done, or why not, in a sentence
	Count   int          `json:"count,omitempty"` // repeats of the same refusal before this one

	Salt string `json:"salt,omitempty"` // hex; empty after an erasure
	// Erased holds the leaf of each field that was erased, and Salts the salts
	// of those that were not (hex), both by field name.
	Erased map[string]string `json:"erased,omitempty"`
	Salts  map[string]string `json:"salts,omitempty"`

	Prev string `json:"prev"` // hex
	Hash string `json:"hash"` // hex
}

// entryFields are the fields with a leaf of their own, in the order of the chain.
var entryFields = [...]string{"by", "args", "reason", "text"}

// field returns the value of the i-th of entryFields.
func (e *Entry) field(i int) string {
	switch i {
	case 0:
		v := string(e.By)
		for _, p := range e.ApprovedBy {
			v += "\x00" + string(p)
		}
		return v
	case 1:
		return string(e.Args)
	case 2:
		return e.Reason
	default:
		return e.Text
	}
}

// Seal sets Prev and Hash. Everything else must be set before; what would not
// survive a way through JSON as it stands is brought to the form that does.
func (e *Entry) Seal(prev string) {
	for _, s := range []*string{&e.Via, &e.Op, &e.Key, &e.Incident, &e.Plan, &e.Reason, &e.Text} {
		*s = strings.ToValidUTF8(*s, "\uFFFD")
	}
	e.By = Principal(strings.ToValidUTF8(string(e.By), "\uFFFD"))
	if len(e.Args) > 0 && !isCompact(e.Args) {
		if b, err := json.Marshal(e.Args); err == nil { // compact, and escaped for HTML
			e.Args = b
		}
	}
	e.Prev = prev
	e.Hash = e.digest()
}

// isCompact reports whether args is certainly in the form that json.Marshal
// gives it: no blanks, and nothing that it would escape.
func isCompact(args json.RawMessage) bool {
	for _, c := range args {
		if c <= ' ' || c >= 0x7f || c == '<' || c == '>' || c == '&' {
			return false
		}
	}
	return true
}

// Intact reports whether Hash fits the rest of the entry.
func (e *Entry) Intact() bool { return e.Unsound() == "" }

// The lengths, in hex digits, of a leaf and of the salt of one field. A salt of
// another length would let bytes move between the salt and the value without
// changing the hash of the two.
const (
	leafLen = 64
	saltLen = 32
)

// Unsound says what is wrong with e taken by itself, "" when nothing is. Beside
// the hash it checks what the hash does not cover: that nothing stands in a
// field that is said to be erased.
func (e *Entry) Unsound() string {
	if e.Hash == "" || e.Hash != e.digest() {
		return "its hash does not fit its content"
	}
	if strings.ContainsRune(string(e.By), 0) {
		return "its principal has a zero byte"
	}
	if len(e.Erased) == 0 && len(e.Salts) == 0 {
		return ""
	}
	if e.Salt != "" || len(e.Erased)+len(e.Salts) != len(entryFields) {
		return "its salts are not those of an erasure"
	}
	for i, f := range entryFields {
		leaf, erased := e.Erased[f]
		salt, kept := e.Salts[f]
		switch {
		case erased == kept:
			return "its salts are not those of an erasure"
		case erased && (e.field(i) != "" || f == "by" && len(e.ApprovedBy) > 0):
			return "its field " + f + " is said to be erased, and is not empty"
		case erased && !isHex(leaf, leafLen), kept && !isHex(salt, saltLen):
			return "its salts are not those of an erasure"
		}
	}
	return ""
}

func isHex(s string, length int) bool {
	if len(s) != length {
		return false
	}
	_, err := hex.DecodeString(s)
	return err == nil
}

func (e *Entry) digest() string {
	b := make([]byte, 0, 512)
	str := func(s string) {
		b = strconv.AppendInt(b, int64(len(s)), 10)
		b = append(b, ':')
		b = append(b, s...)
	}
	num := func(n uint64) {
		var digits [20]byte
		str(string(strconv.AppendUint(digits[:0], n, 10)))
	}
	num(uint64(e.N))
	num(e.Index)
	num(uint64(e.At))
	str(string(e.Role))
	str(e.Via)
	str(e.Op)
	str(e.Key)
	str(e.Incident)
	str(e.Plan)
	str(string(e.Outcome))
	str(string(e.Code))
	num(uint64(e.Count))
	head := sha256.Sum256(b)

	b = append(b[:0], e.Prev...)
	b = append(b, head[:]...)
	var buf [128]byte
	salt, _ := hex.AppendDecode(buf[:0], []byte(e.Salt))
	salts := sha512.Sum512(salt)
	const quarter = len(salts) / len(entryFields)
	for i, name := range entryFields {
		if leaf, ok := e.Erased[name]; ok {
			raw, _ := hex.DecodeString(leaf)
			b = append(b, raw...)
			continue
		}
		own := salts[i*quarter : (i+1)*quarter]
		if s, ok := e.Salts[name]; ok {
			own, _ = hex.DecodeString(s)
		}
		leaf := entryLeaf(own, e.field(i))
		b = append(b, leaf[:]...)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func entryLeaf(salt []byte, value string) [sha256.Size]byte {
	var buf [512]byte // most fit; more is put elsewhere
	b := append(buf[:0], salt...)
	b = append(b, value...)
	return sha256.Sum256(b)
}

// Erase replaces the named field ("args", "reason", "text" or "by") by its
// leaf: its value is gone, and the entry is as intact as it was.
func (e *Entry) Erase(name string) error {
	for i, f := range entryFields {
		if f != name {
			continue
		}
		if _, done := e.Erased[name]; done {
			return nil
		}
		if e.Salts == nil {
			raw, _ := hex.DecodeString(e.Salt)
			salts := sha512.Sum512(raw)
			quarter := len(salts) / len(entryFields)
			e.Salts = make(map[string]string, len(entryFields))
			for j, g := range entryFields {
				e.Salts[g] = hex.EncodeToString(salts[j*quarter : (j+1)*quarter])
			}
			e.Salt = ""
		}
		salt, _ := hex.DecodeString(e.Salts[name])
		leaf := entryLeaf(salt, e.field(i))
		if e.Erased == nil {
			e.Erased = make(map[string]string, 1)
		}
		e.Erased[name] = hex.EncodeToString(leaf[:])
		delete(e.Salts, name)
		switch name {
		case "by":
			e.By, e.ApprovedBy = "", nil
		case "args":
			e.Args = nil
		case "reason":
			e.Reason = ""
		case "text":
			e.Text = ""
		}
		return nil
	}
	return Invalidf("an entry has no field %q that can be erased", name).WithHint("args, reason, text or by")
}
