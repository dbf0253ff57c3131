"""x"""
EPILOG=""
def demo() -> None:
    """x"""
