package state

import (
	"reflect"
	"testing"

	"footplate/fleet"
)

// TestSummers: whatever changes in a row that writes its own sum changes the
// sum, also a field that is added to its type later.
func TestSummers(t *testing.T) {
	for _, row := range []summer{new(Remembered), new(Parcel), new(Line)} {
		v := reflect.ValueOf(row).Elem()
		before := string(row.appendSum(nil))
		leaves(v, v.Type().Name(), func(name string, leaf reflect.Value) {
			old := reflect.New(leaf.Type()).Elem()
			old.Set(leaf)
			switch leaf.Kind() {
			case reflect.String:
				leaf.SetString("x")
			case reflect.Int, reflect.Int64:
				leaf.SetInt(7)
			case reflect.Uint64:
				leaf.SetUint(7)
			case reflect.Bool:
				leaf.SetBool(true)
			case reflect.Slice:
				leaf.SetBytes([]byte("7"))
			case reflect.Pointer:
				leaf.Set(reflect.ValueOf(fleet.Conflictf("x")))
			default:
				t.Fatalf("%s is a %s", name, leaf.Kind())
			}
			if string(row.appendSum(nil)) == before {
				t.Errorf("%s leaves the sum as it was", name)
			}
			leaf.Set(old)
		})
	}
}

// leaves calls f with every field of v that is no struct.
func leaves(v reflect.Value, name string, f func(string, reflect.Value)) {
	for i := range v.NumField() {
		field, name := v.Field(i), name+"."+v.Type().Field(i).Name
		if field.Kind() == reflect.Struct {
			leaves(field, name, f)
			continue
		}
		f(name, field)
	}
}

// TestSumParts: where one text ends and the next begins is part of the sum.
func TestSumParts(t *testing.T) {
	a, b := Line{By: "ab", Via: "c"}, Line{By: "a", Via: "bc"}
	if string(a.appendSum(nil)) == string(b.appendSum(nil)) {
		t.Error("ab,c and a,bc have the same sum")
	}
}
