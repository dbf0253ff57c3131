"""When two answers agree: measures by name, for calibrations, audits and evaluations alike."""
