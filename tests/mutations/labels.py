SPLITS=["train"]
def clean_source(f): return None
def is_there(k):
  from tests.mutations import pictures
  return k in pictures.SUFFIX
