package server

import (
	"encoding/json"
	"fmt"
	"slices"

	"footplate/controlplane/op"
	"footplate/fleet"
)

// object is a JSON object of the OpenAPI document. Its fields are written in the
// order of their names.
type object = map[string]any

// openAPI describes every operation, as OpenAPI 3.1 has it.
func openAPI(ops *op.Registry, version string) ([]byte, error) {
	paths := object{}
	for _, o := range ops.Ops() {
		if o.Hidden() {
			continue
		}
		item := object{}
		if o.Kind != op.KindMutation {
			item["get"] = getOf(o)
		}
		if o.Kind != op.KindQuery {
			item["post"] = postOf(o)
		}
		paths["/v1/"+o.Path()] = item
	}
	paths["/v1/events"] = object{"get": object{
		"operationId": "events", "summary": "the lines of the channel as they come, as server-sent events",
		"parameters": []object{
			parameter("Last-Event-ID", "header", "go on after this line", schema("number")),
			parameter("after", "query", "go on after this line", schema("number")),
			parameter("last", "query", "begin with this many of the newest lines", schema("number")),
		},
		"responses": responses("the events", object{"text/event-stream": object{"schema": object{"type": "string"}}}),
	}}
	b, err := json.MarshalIndent(object{
		"openapi": "3.1.0",
		"info": object{
			"title": "footplate", "version": version,
			"description": "The control plane of a CI fleet. Every operation is here, by the same name as on every other surface.",
		},
		"security": []object{{"token": []string{}}},
		"paths":    paths,
		"components": object{
			"securitySchemes": object{"token": object{"type": "http", "scheme": "bearer"}},
			"schemas":         object{"Problem": problemSchema(), "Reply": replySchema(), "Plan": planSchema()},
		},
	}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode the OpenAPI document: %w", err)
	}
	return append(b, '\n'), nil
}

func about(o *op.Op) object {
	text := o.Long
	if text != "" {
		text += "\n\n"
	}
	text += fmt.Sprintf("Role: %s.", o.Role)
	if o.Risk != "" {
		text += fmt.Sprintf(" Risk: %s.", o.Risk)
	}
	return object{"summary": o.Summary, "description": text, "tags": []string{o.Noun()}}
}

func getOf(o *op.Op) object {
	out := about(o)
	out["operationId"] = o.Path()
	params := []object{parameter("stale", "query", "answer from this node, without a quorum", object{"type": "boolean"})}
	for _, p := range o.Params {
		x := parameter(p.Name, "query", p.Help, paramSchema(p))
		if p.Required {
			x["required"] = true
		}
		params = append(params, x)
	}
	out["parameters"] = params
	kind := "application/json"
	if o.Kind == op.KindStream {
		kind = "application/octet-stream"
	}
	content := object{"type": "object"}
	switch {
	case o.Kind == op.KindStream:
		content = object{"type": "string"}
	case o.Many:
		content = object{"type": "array", "items": object{"type": "object"}}
	}
	out["responses"] = responses("the answer", object{kind: object{"schema": content}})
	return out
}

func postOf(o *op.Op) object {
	out := about(o)
	out["operationId"] = o.Path() + ".post"
	args := object{"type": "object", "additionalProperties": false}
	properties := object{}
	var required []string
	for _, p := range o.Params {
		properties[p.Name] = paramSchema(p)
		if p.Required {
			required = append(required, p.Name)
		}
	}
	args["properties"] = properties
	if len(required) > 0 {
		args["required"] = required
	}
	text := func(help string) object { return object{"type": "string", "description": help} }
	request := object{
		"type": "object", "additionalProperties": false,
		"properties": object{
			"args":     args,
			"key":      text("the same key never acts twice; one is made when it is left out"),
			"reason":   text("why, for the record"),
			"incident": text("the incident that this belongs to"),
			"confirm":  text("yes, or the hash of the plan that was shown, for what is disruptive"),
			"repeat":   object{"type": "string", "enum": []string{"ask", "meant"}, "description": "of a chat: ask before the same is done for the same person twice within a minute; meant, and it is done again"},
			"via":      text("the surface and its version"),
			"dry_run":  object{"type": "boolean", "description": "show what it would do, and do nothing"},
		},
	}
	out["requestBody"] = object{"required": len(required) > 0, "content": object{"application/json": object{"schema": request}}}
	content := object{"application/json": object{"schema": object{"$ref": "#/components/schemas/Reply"}}}
	if o.Kind == op.KindStream {
		content["application/octet-stream"] = object{"schema": object{"type": "string"}}
	}
	out["responses"] = responses("done", content)
	return out
}

func parameter(name, in, help string, schema object) object {
	return object{"name": name, "in": in, "description": help, "schema": schema}
}

func paramSchema(p op.Param) object {
	s := schema(p.Type)
	if len(p.Enum) > 0 {
		s["enum"] = p.Enum
	}
	if p.Many {
		s = object{"type": "array", "items": s}
	} else if p.Default != "" {
		s["default"] = defaultOf(p)
	}
	s["description"] = p.Help
	return s
}

func defaultOf(p op.Param) any {
	if p.Type == "number" || p.Type == "bool" {
		return json.RawMessage(p.Default)
	}
	return p.Default
}

// schema returns the schema of a type, as op.Param names it.
func schema(t string) object {
	switch t {
	case "number":
		return object{"type": "integer"}
	case "bool":
		return object{"type": "boolean"}
	case "time":
		return object{"type": "string", "format": "date-time"}
	case "duration":
		return object{"type": "string", "pattern": `^-?(0|([0-9]+(ms|s|m|h|d))+)$`}
	case "size":
		return object{"type": "string", "pattern": `^[+-]?[0-9]+$`}
	case "object":
		return object{"type": "object"}
	}
	return object{"type": "string"}
}

func responses(what string, content object) object {
	problem := object{"application/problem+json": object{"schema": object{"$ref": "#/components/schemas/Problem"}}}
	out := object{
		"200": object{"description": what, "content": content},
		"401": object{"description": "the token is not known", "content": problem},
	}
	for _, m := range fleet.CodeTable() {
		status := fmt.Sprint(m.HTTP)
		if _, there := out[status]; m.Code != "" && !there {
			out[status] = object{"description": m.Means, "content": problem}
		}
	}
	return out
}

func problemSchema() object {
	var codes []string
	for _, m := range fleet.CodeTable() {
		if m.Code != "" {
			codes = append(codes, string(m.Code))
		}
	}
	slices.Sort(codes)
	return object{
		"type": "object", "description": "an error, as RFC 9457 has it",
		"required": []string{"type", "title", "status", "detail", "code"},
		"properties": object{
			"type": object{"type": "string"}, "title": object{"type": "string"}, "status": object{"type": "integer"},
			"detail": object{"type": "string", "description": "what is wrong"},
			"code":   object{"type": "string", "enum": codes},
			"hint":   object{"type": "string", "description": "what to do next"},
			"plan":   object{"$ref": "#/components/schemas/Plan"},
		},
	}
}

func replySchema() object {
	return object{
		"type": "object", "required": []string{"op", "text"},
		"properties": object{
			"op": object{"type": "string"}, "key": object{"type": "string"},
			"entry":     object{"type": "integer", "description": "number of the audit entry"},
			"text":      object{"type": "string", "description": "what was done"},
			"result":    object{"description": "what the operation gives back"},
			"duplicate": object{"type": "boolean", "description": "the key was known: nothing was done again"},
			"plan":      object{"$ref": "#/components/schemas/Plan"},
		},
	}
}

func planSchema() object {
	return object{
		"type": "object", "description": "what an operation would do", "required": []string{"lines", "hash"},
		"properties": object{
			"lines": object{"type": "array", "items": object{"type": "string"}},
			"hash":  object{"type": "string", "description": "to confirm exactly this plan"},
		},
	}
}
