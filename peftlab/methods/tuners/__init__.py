"""Methods that PEFT does not have, written as PEFT tuners. Importing one registers it with PEFT."""
