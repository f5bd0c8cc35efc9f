package archive

import (
	"bytes"
	"encoding/json"

	"footplate/fleet"
)

// encode returns e as one line of JSON, without its newline. Nothing is escaped
// that need not be: the arguments are covered by the hash as they stand.
func encode(e *fleet.Entry) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(e); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte{'\n'}), nil
}

// decode reads a line that encode wrote, and says what is wrong with any other:
// one entry has one form, so that nothing can be hidden in a field that is
// unknown or stands twice.
func decode(line []byte) (e fleet.Entry, wrong string) {
	if err := json.Unmarshal(line, &e); err != nil {
		return e, "it is not the JSON of an entry: " + err.Error()
	}
	again, err := encode(&e)
	if err != nil || !bytes.Equal(line, again) {
		return e, "it is not the JSON of an entry as footplate writes it"
	}
	return e, ""
}
