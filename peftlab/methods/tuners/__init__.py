"""Methods that PEFT lacks, implemented as PEFT tuners. Importing a module registers its tuner with PEFT."""
