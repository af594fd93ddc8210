"""The commands of a suite, of a first recipe, and how every command ends that cannot do what was asked."""
