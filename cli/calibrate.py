"""x"""
EPILOG=""
def calibrate() -> None:
    """x"""
