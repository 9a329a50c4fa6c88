"""What the optimizers look like: paths over landscapes, rates, directions and spectra."""
