// Command lint checks the two rules of this repository that no other tool knows: who may import whom, and that
// the deterministic packages use no clock and no randomness. It prints one line a finding and exits 1.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

const module = "github.com/swarmd/swarmd/"

// mayImport: for a package (or a tree, with /...), the packages of ours that it may import besides the messages.
// The first match counts; what matches nothing is a finding.
var mayImport = []struct {
	pkg     string
	allowed []string
}{
	{"proto/swarm/v1", nil},
	{"proto/wire", nil},
	{"proto/registries", nil},
	{"scheduler", nil},
	{"manager/store", nil},
	{"manager/replica", []string{"manager/store", "proto/wire"}},
	{"manager/reconcile", []string{"manager/store"}},
	{"manager/reconcile/...", []string{"manager/store", "manager/reconcile"}},
	{"manager/claims", []string{"manager/store", "scheduler"}},
	{"manager/orchestrator", []string{"manager/claims", "manager/reconcile", "manager/store", "scheduler"}},
	{"manager/allocator", []string{"manager/reconcile", "manager/store"}},
	{"manager/placement", []string{"manager/claims", "manager/reconcile", "manager/store", "scheduler"}},
	{"manager/plan", []string{"manager/allocator", "manager/claims", "manager/orchestrator", "manager/placement", "manager/reconcile", "manager/store", "scheduler"}},
	{"manager/metrics", []string{"manager/store"}},
	{"manager/control", []string{"manager/store", "proto/wire"}},
	{"manager/dispatcher", []string{"manager/store", "proto/wire"}},
	{"manager/ca", []string{"manager/store", "proto/wire"}},
	{"manager/relay", []string{"manager/store", "proto/wire"}},
	{"manager/registry", []string{"proto/registries"}},
	{"manager", []string{"manager/...", "proto/wire", "proto/registries"}},
	{"worker/...", []string{"worker/...", "proto/wire", "proto/registries"}},
	{"cmd/swarmd", []string{"cmd/swarmd/node", "worker/...", "proto/wire", "proto/registries"}},
	{"cmd/swarmd/node", []string{"manager", "worker/...", "proto/wire", "proto/registries"}},
	{"cmd/swarmctl/...", []string{"cmd/swarmctl/...", "proto/wire", "proto/registries"}},
	{"e2e/...", []string{"..."}},
	{".ci/...", nil},
}

// deterministic packages judge by their arguments alone.
var deterministic = []string{"manager/store", "scheduler", "manager/claims", "manager/orchestrator", "manager/allocator", "manager/placement", "manager/plan"}

// forbidden in them: packages, and functions of time that read the clock (a timer judges nothing).
var (
	forbiddenImports = []string{"math/rand", "math/rand/v2", "crypto/rand"}
	forbiddenTime    = []string{"Now", "Since", "Until"}
)

type goPackage struct {
	ImportPath, Dir                    string
	Imports, TestImports, XTestImports []string
	GoFiles                            []string
}

func main() {
	findings, err := run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "lint:", err)
		os.Exit(2)
	}
	for _, f := range findings {
		fmt.Println(f)
	}
	if len(findings) > 0 {
		os.Exit(1)
	}
}

func run() ([]string, error) {
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,Imports,TestImports,XTestImports,GoFiles", "./...")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	var findings []string
	dec := json.NewDecoder(bytes.NewReader(out))
	for {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("read go list: %w", err)
		}
		findings = append(findings, imports(p)...)
		if slices.Contains(deterministic, strings.TrimPrefix(p.ImportPath, module)) {
			more, err := clocks(p)
			if err != nil {
				return nil, err
			}
			findings = append(findings, more...)
		}
	}
	slices.Sort(findings)
	return findings, nil
}

func imports(p goPackage) []string {
	name := strings.TrimPrefix(p.ImportPath, module)
	rule := slices.IndexFunc(mayImport, func(r struct {
		pkg     string
		allowed []string
	}) bool {
		return matches(r.pkg, name)
	})
	if rule < 0 {
		return []string{fmt.Sprintf("%s: no import rule names this package; add one to .ci/lint", name)}
	}
	var out []string
	for _, imp := range p.Imports {
		other, ours := strings.CutPrefix(imp, module)
		if !ours || other == "proto/swarm/v1" {
			continue
		}
		if !slices.ContainsFunc(mayImport[rule].allowed, func(a string) bool { return matches(a, other) }) {
			out = append(out, fmt.Sprintf("%s: must not import %s", name, other))
		}
	}
	for _, imp := range slices.Concat(p.TestImports, p.XTestImports) {
		// Tests may reach further, but not up: only e2e sees whole managers and nodes.
		other, ours := strings.CutPrefix(imp, module)
		if ours && (other == "manager" || other == "cmd/swarmd/node") && other != name && !strings.HasPrefix(name, "cmd/") && !strings.HasPrefix(name, "e2e/") {
			out = append(out, fmt.Sprintf("%s: its tests must not import %s", name, other))
		}
	}
	return out
}

// matches: "a/b" is that package, "a/..." the tree with a itself, "..." everything.
func matches(pattern, name string) bool {
	if pattern == "..." {
		return true
	}
	if tree, ok := strings.CutSuffix(pattern, "/..."); ok {
		return name == tree || strings.HasPrefix(name, tree+"/")
	}
	return pattern == name
}

func clocks(p goPackage) ([]string, error) {
	var out []string
	for _, file := range p.GoFiles {
		path := filepath.Join(p.Dir, file)
		set := token.NewFileSet()
		f, err := parser.ParseFile(set, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, fmt.Errorf("parse %s: %w", path, err)
		}
		timeName := ""
		for _, imp := range f.Imports {
			is := strings.Trim(imp.Path.Value, `"`)
			if slices.Contains(forbiddenImports, is) {
				out = append(out, fmt.Sprintf("%s: %s in a deterministic package; take a seed as a parameter", set.Position(imp.Pos()), is))
			}
			if is == "time" {
				timeName = "time"
				if imp.Name != nil {
					timeName = imp.Name.Name
				}
			}
		}
		ast.Inspect(f, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok || timeName == "" {
				return true
			}
			if x, ok := sel.X.(*ast.Ident); ok && x.Name == timeName && slices.Contains(forbiddenTime, sel.Sel.Name) {
				out = append(out, fmt.Sprintf("%s: time.%s in a deterministic package; take now as a parameter", set.Position(sel.Pos()), sel.Sel.Name))
			}
			return true
		})
	}
	return out, nil
}
