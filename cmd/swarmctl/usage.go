package main

import (
	"cmp"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// group is a noun: a command that only holds others, and refuses a word that is none of them.
func group(use, short string, sub ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			hint := "see `" + cmd.CommandPath() + " --help`"
			if like := cmd.SuggestionsFor(args[0]); len(like) > 0 {
				hint = fmt.Sprintf("did you mean `%s %s`?", cmd.CommandPath(), like[0])
			}
			return fmt.Errorf("%s: there is no command %q; %s", cmp.Or(nameOf(cmd), "usage"), args[0], hint)
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		// How far a word may be from the command that is meant.
		SuggestionsMinimumDistance: 2,
	}
	cmd.AddCommand(sub...)
	return cmd
}

// helpCommand is cobra's, but an unknown command is an error there too.
func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use: "help [COMMAND]...", Short: "Show what a command does", DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			about, rest, err := cmd.Root().Find(args)
			if err == nil && len(rest) > 0 {
				err = about.ValidateArgs(rest)
			}
			if err != nil {
				return err
			}
			return about.Help()
		},
	}
}

// nameOf is the command without the program's name: service create.
func nameOf(cmd *cobra.Command) string {
	_, name, _ := strings.Cut(cmd.CommandPath(), " ")
	return name
}

func usageError(cmd *cobra.Command, format string, args ...any) error {
	return fmt.Errorf("%s: %s; see `%s --help`", nameOf(cmd), fmt.Sprintf(format, args...), cmd.CommandPath())
}

func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError(cmd, "it takes no arguments, and got %q", args[0])
	}
	return nil
}

func oneArg(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch len(args) {
		case 0:
			return usageError(cmd, "name the %s", what)
		case 1:
			return nil
		}
		return usageError(cmd, "name one %s, and not also %q", what, args[1])
	}
}

func someArgs(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return usageError(cmd, "name at least one %s", what)
		}
		return nil
	}
}

// flagError words what is wrong with the flags.
func flagError(cmd *cobra.Command, err error) error {
	var (
		unknown *pflag.NotExistError
		missing *pflag.ValueRequiredError
		invalid *pflag.InvalidValueError
	)
	name := cmp.Or(nameOf(cmd), "usage")
	help := cmd.CommandPath() + " --help"
	switch {
	case errors.As(err, &unknown):
		flag := "--" + unknown.GetSpecifiedName()
		if unknown.GetSpecifiedShortnames() != "" {
			flag = "-" + unknown.GetSpecifiedName()
		}
		return fmt.Errorf("%s: there is no flag %s; see `%s`", name, flag, help)
	case errors.As(err, &missing):
		return fmt.Errorf("%s: --%s needs a value; see `%s`", name, missing.GetFlag().Name, help)
	case errors.As(err, &invalid):
		return fmt.Errorf("%s: --%s %q: %w", name, invalid.GetFlag().Name, invalid.GetValue(), valueError(invalid))
	}
	return fmt.Errorf("%s: %w; see `%s`", name, err, help)
}

// valueError says what a flag wants, where the flag's own type does not.
func valueError(e *pflag.InvalidValueError) error {
	if _, own := e.GetFlag().Value.(*spanValue); own {
		return e.Unwrap()
	}
	switch e.GetFlag().Value.Type() {
	case "uint32", "uint64":
		return errors.New("want a whole number, 0 or more")
	case "int32", "int64":
		return errors.New("want a whole number")
	case "float64":
		return errors.New("want a number such as 0.5")
	case "bool":
		return errors.New("want true or false")
	case "duration":
		return errors.New("want a duration with its unit, such as 500ms, 10s or 2m")
	}
	return e.Unwrap()
}
